import { type Adapter, noUsage } from "../adapter.ts";

/** Answers with the input, inside the server. */
export const echoAdapter: Adapter = async (_endpoint, { input }) => ({ output: input, usage: noUsage });
