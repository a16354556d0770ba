/** @import { AgentClient } from './client.js' */
import type { AgentClient } from './client.js';
/**
 * @param {AgentClient} agent
 * @param {string} origin one that is listed, so there are few
 */
export declare function gateOf(agent: AgentClient, origin: string): any;
