// Policies for a producer in Node, by step 4 of the contract in lua/README.md.

const order = (pattern) => [-Buffer.byteLength(pattern), pattern.split("*").length];

function compare([a], [b]) {
  const [x, y] = [order(a), order(b)];
  return x[0] - y[0] || x[1] - y[1] || Buffer.compare(Buffer.from(a), Buffer.from(b));
}

/** Whether a group key is the literals of a pattern with anything between them. */
function matches(pattern, group) {
  const [first, ...rest] = pattern.split("*");
  if (rest.length === 0) return group === first;
  const last = rest.pop();
  const end = group.length - last.length;
  if (!group.startsWith(first) || !group.endsWith(last) || end < first.length) return false;
  let place = first.length;
  for (const literal of rest) {
    place = group.indexOf(literal, place);
    if (place < 0 || place + literal.length > end) return false;
    place += literal.length;
  }
  return true;
}

/** Reads the policies, the one that decides first in front. */
export async function readPolicies(client, prefix) {
  const found = Object.entries(await client.hGetAll(`${prefix}}:policies`));
  return found.map(([pattern, text]) => [pattern, JSON.parse(text)]).sort(compare);
}

const ms = (seconds) => (seconds ? Math.max(1, Math.round(1000 * seconds)) : 0);

/** The limits of a section whose tasks set none, in place of the settings of this producer. */
export function limitsOf(policies, group, settings) {
  const l = {};
  for (const [pattern, limits] of [...policies, ["*", { priority: 0, ...settings }]]) {
    if (!matches(pattern, group)) continue;
    if ("min_interval" in limits && !("min_interval" in l)) l.leading ??= limits.leading ?? false;
    for (const [name, value] of Object.entries(limits)) if (!(name in l)) l[name] = value;
  }
  const named = { max_bytes: l.max_bytes, max_weight: l.max_weight };
  Object.assign(named, { min_interval: ms(l.min_interval), leading: Number(l.leading ?? 0) });
  const text = Object.entries(named).map(([name, value]) => (value ? ` ${name}=${value}` : ""));
  return `${ms(l.grace_period)} ${ms(l.max_delay)} ${l.max_size} ${l.priority}${text.join("")}`;
}
