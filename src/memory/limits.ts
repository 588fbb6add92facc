/** The largest value: bytes as they are, JSON as it is written without spaces. */
export const maxValueBytes = 51_200;
/** How deep arrays and objects of a JSON value may lie in one another. */
export const maxValueDepth = 32;
/** Where an entry is whose request names no namespace. */
export const defaultNamespace = "default";
/** How many shared namespaces an agent may own. */
export const maxNamespacesPerAgent = 100;

/** What one memory may hold, and how much of its log is kept. */
export type MemoryLimits = { readonly maxKeys: number; readonly maxBytes: number; readonly keptChanges: number };
