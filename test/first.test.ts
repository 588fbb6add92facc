import { fromJson, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { dialects, type Protocol, start } from "./harness.ts";

const protocols: Protocol[] = ["connect", "connect-json", "grpc", "grpc-web"];

describe.each(dialects)("%s", (dialect) => {
  test.each(protocols)("a task reaches the echo agent and comes back over %s", async (protocol) => {
    await using world = await start(dialect);
    const { bus } = world.as(world.operatorKey, protocol);
    const { task } = await bus.submitTask({
      contractId: "echo",
      contractVersion: "1.0.0",
      input: fromJson(ValueSchema, { hello: "world" }),
    });
    expect(task?.state).toBe(TaskState.COMPLETED);
    expect(toJson(ValueSchema, task!.output!)).toEqual({ hello: "world" });
  });
});
