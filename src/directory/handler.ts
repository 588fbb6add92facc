import type { ServiceImpl } from "@connectrpc/connect";
import type { DirectoryService } from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import type { App } from "../app.ts";
import { collaborations } from "./collaboration-handler.ts";
import { profiles } from "./profile-handler.ts";
import { registration } from "./register.ts";
import { searches } from "./search-handler.ts";

export const directoryHandler = (app: App): ServiceImpl<typeof DirectoryService> => ({
  ...registration(app),
  ...profiles(app),
  ...searches(app),
  ...collaborations(app),
});
