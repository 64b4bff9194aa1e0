// Adds tasks to an aggregator and prints how many were new: URL NAME SCRIPTS COUNT LIMITS
// SCRIPTS is a folder with the expanded scripts, LIMITS are the named limits of each task.
import { readFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import { encode } from "@msgpack/msgpack";
import { createClient } from "redis";
import { limitsOf, readPolicies } from "./policies.js";

const [url, name, folder, count, limits] = process.argv.slice(2);
const client = await createClient({ url }).connect();

const source = (script) => readFileSync(`${folder}/${script}.lua`, "utf8");
const call = (sha, keys, args) => client.evalSha(sha, { keys, arguments: args });

const prefix = `redisagg:{${name}`;
const register = await client.scriptLoad(source("register"));
const [, partitions] = await call(register, [`${prefix}}:meta`], ["1", "16"]);
const registerPartition = await client.scriptLoad(source("register_partition"));
for (let n = 0; n < Number(partitions); n++)
  await call(registerPartition, [`${prefix}:${n}}:state`], [partitions]);
const add = await client.scriptLoad(source("add"));
const settings = { grace_period: 120, max_delay: 600, max_size: 20 };
let [added, policies, readAt] = [0, [], -Infinity];
for (let n = 0; n < Number(count); n++) {
  if (performance.now() > readAt + 500)
    [readAt, policies] = [performance.now(), await readPolicies(client, prefix)];
  const group = `g${n % 10}`;
  const partition = crc32(group) % Number(partitions);
  const own = ["state", "groups", "due", "ready", "call:node", "seen", "seen_before"];
  const names = [...own, `tasks:${group}`, `ids:${group}`];
  const keys = names.map((each) => `${prefix}:${partition}}:${each}`);
  const body = Buffer.from(encode(["from-node", { n }, { by: "node" }]));
  const head = ["", "600000", `${prefix}}:wake`, `${partition}/${partitions} policies`, "0", "0", ""];
  const section = [group, limitsOf(policies, group, settings), "1 3", `node-${n}`, body, limits];
  const [answer] = await call(add, keys, [...head, ...section]);
  if (typeof answer === "string") throw new Error(answer);
  added += [answer].flat()[0]; // of an array: new tasks, and tasks that have replaced one
}
console.log(added);
client.destroy();
