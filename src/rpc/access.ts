import type { DescMethod } from "@bufbuild/protobuf";
import { getOption, hasOption } from "@bufbuild/protobuf";
import { type Access, access, Kind, Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { nameIn } from "../enum-name.ts";
import { Fault } from "../errors.ts";
import type { Caller } from "./caller.ts";

/** Methods of others' protos, which cannot declare themselves. */
const foreign: ReadonlySet<string> = new Set([
  "grpc.health.v1.Health",
  "grpc.reflection.v1.ServerReflection",
  "grpc.reflection.v1alpha.ServerReflection",
]);

type Declared = Pick<Access, "role" | "scope" | "kind" | "audited" | "items" | "alone" | "waits">;

const declared = new WeakMap<DescMethod, Declared>();
const open = { role: Role.PUBLIC, scope: "", kind: Kind.QUERY, audited: false, items: "", alone: true, waits: "" };

/** What a method declares about itself. One that declares nothing is refused to everybody (ROLE_UNSPECIFIED). */
export function accessOf(method: DescMethod): Declared {
  let found = declared.get(method);
  if (!found) {
    if (foreign.has(method.parent.typeName)) found = open;
    else found = hasOption(method, access) ? getOption(method, access) : { ...open, role: Role.UNSPECIFIED };
    declared.set(method, found);
  }
  return found;
}

/** The full name of a method, as in its path: `moltwire.bus.v1.BusService/SubmitTask`. */
export const methodName = (method: DescMethod): string => `${method.parent.typeName}/${method.name}`;

/** The name of a role as clients read it. */
export const roleName = (role: Role): string => nameIn(Role, role);

/** Whether a key with these scopes may do what the method asks. `tasks:*` and `*:read` stand for all that begin or end so. */
export function holdsScope(scopes: readonly string[], wanted: string): boolean {
  if (scopes.length === 0) return true;
  const [area, verb] = wanted.split(":");
  return scopes.some((scope) => {
    const [heldArea, heldVerb] = scope.split(":");
    return (heldArea === "*" || heldArea === area) && (heldVerb === "*" || heldVerb === verb);
  });
}

/** Throws unless the caller may call the method: KEY_MISSING, or KEY_NETWORK_REFUSED for a session from elsewhere; ROLE_REQUIRED or SCOPE_REQUIRED. */
export function checkAccess(caller: Caller, method: DescMethod): void {
  const { role, scope } = accessOf(method);
  if (role === Role.PUBLIC) return;
  if (caller.role === Role.PUBLIC)
    throw (
      caller.refused ??
      new Fault("KEY_MISSING", "this method needs a key: send the header `authorization: Bearer mw_…`")
    );
  if (role === Role.UNSPECIFIED || caller.role < role) {
    const metadata = { role: roleName(caller.role), required_role: roleName(role) };
    throw new Fault(
      "ROLE_REQUIRED",
      `this method needs a key of role ${metadata.required_role}; yours is ${metadata.role}`,
      metadata,
    );
  }
  if (!holdsScope(caller.scopes, scope))
    throw new Fault("SCOPE_REQUIRED", `the key lacks the scope ${scope}`, { required_scope: scope });
}
