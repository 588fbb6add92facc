import { Fault } from "../errors.ts";

/** An organisation has as many of something as it may; the message says what to do. */
export const quotaExceeded = (resource: string, limit: number, message: string): Fault =>
  new Fault(
    "QUOTA_EXCEEDED",
    message,
    { resource, limit: String(limit) },
    { quota: { subject: resource, description: message } },
  );
