/** How many contracts one reply to another server holds at most: each has two schemas. */
export const contractsPerPage = 10;
