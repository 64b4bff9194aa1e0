// Submits one task and prints its outcome as JSON: URL NAME SCRIPTS GROUP ID
// The namespace has been registered, as in producer.js. SCRIPTS is a folder with the expanded scripts.
import { readFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import { decode, encode } from "@msgpack/msgpack";
import { createClient } from "redis";

const [url, name, folder, group, id] = process.argv.slice(2);
const PARTITIONS = 16;
const KEEP_MS = 60_000;
const client = await createClient({ url }).connect();
const listener = await client.duplicate().connect();

const prefix = `redisagg:{${name}`;
const partition = crc32(group) % PARTITIONS;
const keyOf = (last) => `${prefix}:${partition}}:${last}`;
const answerKey = keyOf(`answer:${Buffer.byteLength(group)}:${group}:${id}`);

// Before the add, so that the message can't be missed.
const heard = new Promise((resolve) =>
  listener.subscribe(`${prefix}}:answers`, (message) => {
    const flat = decode(message, { rawStrings: true }).map((each) => Buffer.from(each));
    const at = flat.findIndex((each, n) => n % 2 === 0 && each.equals(Buffer.from(answerKey)));
    if (at >= 0) resolve(flat[at + 1]); // empty if it is too long for a message
  }, true),
);

const keepFor = Buffer.from([0xce, 0, 0, 0, 0]); // always five bytes
keepFor.writeUInt32BE(KEEP_MS, 1);
const members = ["from-node", { n: 1 }, null, {}].map((each) => Buffer.from(encode(each)));
const body = Buffer.concat([Buffer.from([0x95]), ...members, keepFor]);
const head = ["", "600000", `${prefix}}:wake`, `${partition}/${PARTITIONS} policies`, "0", "0", ""];
const names = ["state", "groups", "due", "ready", "call:submit", "seen", "seen_before"];
const keys = [...names, `tasks:${group}`, `ids:${group}`].map(keyOf);
const add = await client.scriptLoad(readFileSync(`${folder}/add.lua`, "utf8"));
const section = [group, "120000 600000 1 0", "1 3", id, body, ""];
const [answer] = await client.evalSha(add, { keys, arguments: [...head, ...section] });
if (typeof answer === "string") throw new Error(answer);

let record = await heard;
if (record.length === 0) {
  const reply = await client.sendCommand(["GET", answerKey], { typeMapping: { 36: Buffer } });
  record = Buffer.from(reply);
}
console.log(JSON.stringify(decode(record)));
client.destroy();
listener.destroy();
