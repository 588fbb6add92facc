-- Requests across organisations that are kept no longer, by when they came.
create index federation_crossing_ended on federation_crossing (create_ms) where is_open = 0;
