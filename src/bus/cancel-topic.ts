/** Rung when a task is ended from outside, wherever it runs. */
export const cancelTopic = (taskId: string): string => `cancel:${taskId}`;
