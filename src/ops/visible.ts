/** Who may see an event. One rule for feeds, lists and webhooks. */

/**
 * An event that concerns an agent is seen by that agent and by those who see the whole organisation; one that concerns the whole organisation by everybody in it.
 *
 * @param eventAgentId the agent the event concerns; empty: the whole organisation.
 */
export const concerns = (
  viewer: { readonly wholeOrg: boolean; readonly agentId: string },
  eventAgentId: string,
): boolean => viewer.wholeOrg || eventAgentId === "" || eventAgentId === viewer.agentId;
