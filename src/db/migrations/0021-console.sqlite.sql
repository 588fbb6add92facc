-- Who is signed in to the console in a browser.

create table console_session (
  -- SHA-256 of the token in the cookie, in hexadecimal. Alone, since it tells the organisation.
  token_sha256 text primary key,
  org_id text not null,
  -- The key it was made from, or `key_password`.
  key_id text not null,
  -- SHA-256 of what it was made from, as it was then: another key or password in its place ends the session.
  credential_sha256 text not null,
  create_ms integer not null,
  expire_ms integer not null
) strict, without rowid;
create index console_session_key on console_session (org_id, key_id, create_ms);
create index console_session_due on console_session (expire_ms);
