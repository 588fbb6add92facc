import { describe, expect, test } from "vitest";
import { random } from "./crash/random.ts";
import { openAsker, validCall } from "./hostile/ask.ts";
import { pursue } from "./hostile/attack.ts";
import { attacks } from "./hostile/attacks.ts";
import { ownFaults, wrongEnds } from "./hostile/judge.ts";
import { startVictim } from "./hostile/victim.ts";
import { folder } from "./tls-fixtures/certificates.ts";

const seed = Number(process.env.HOSTILE_SEED ?? 20_261_121);

// Every kind of attack, a little of it and without a look at times: those are `npm run test:hostile`'s.
describe(`attacks of every kind on a server of its own (HOSTILE_SEED=${seed})`, () => {
  test("end as they should, and the server lives on and blames itself for nothing", async () => {
    using at = folder();
    const victim = await startVictim(at.path, false);
    const asker = openAsker(victim.target);
    try {
      for (const attack of attacks) {
        const attempts = attack.begin(victim.target, random(seed));
        const count = Math.max(attack.least ?? 1, Math.round((attack.attempts ?? 5_000) / 125));
        const tally = await pursue(attempts, { ...attack, perSecond: 1_000, count });
        attempts.end();
        expect([attack.name, wrongEnds(tally, attack.right)]).toEqual([attack.name, []]);
        expect(await asker.ask(...validCall(victim.target))).toBe("ok");
      }
      expect(ownFaults(await victim.metrics())).toEqual([]);
      expect(victim.process.log()).not.toMatch(/"level":(50|60)/);
    } finally {
      asker.end();
      await victim.close();
    }
  });
});
