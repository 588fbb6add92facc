-- Who is signed in to the console in a browser.

create table console_session (
  -- SHA-256 of the token in the cookie, in hexadecimal. Alone, since it tells the organisation.
  token_sha256 text collate "C" primary key,
  org_id text collate "C" not null,
  -- The key it was made from, or `key_password`.
  key_id text collate "C" not null,
  -- SHA-256 of what it was made from, as it was then: another key or password in its place ends the session.
  credential_sha256 text collate "C" not null,
  create_ms bigint not null,
  expire_ms bigint not null
);
create index console_session_key on console_session (org_id, key_id, create_ms);
create index console_session_due on console_session (expire_ms);
