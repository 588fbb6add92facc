/** What the command ends with. Part of its interface: scripts rely on it. */
export const exitCodes = {
  /** Done. */
  ok: 0,
  /** The task did not complete, the contract would break, the server is not healthy, doctor or the demo found a fault, or an audit log is broken. */
  failed: 1,
  /** An argument, an option, a variable or the input is wrong; nothing was sent. */
  usage: 2,
  /** No Moltwire server answered. */
  unreachable: 3,
  /** The server refused the call. */
  refused: 4,
  /** A fault of the server's, or of this command's. */
  fault: 5,
  /** Ended by Ctrl-C. */
  interrupted: 130,
} as const;

/** The same for `--help`. */
export const exitCodesHelp = `
Exit codes:
  0  done
  1  the task did not complete, the contract would break, the server is not healthy,
     doctor or the demo found a fault, or an audit log is broken
  2  an argument, an option, a variable or the input is wrong; nothing was sent
  3  no Moltwire server answered
  4  the server refused the call
  5  a fault of the server's, or of this command's
  130  ended by Ctrl-C`;
