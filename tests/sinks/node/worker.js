// A worker of BullMQ as users have one: node worker.js REDIS_URL PREFIX QUEUE...
import { appendFileSync } from "node:fs";
import { Worker } from "bullmq";
import { Redis } from "ioredis";

const [url, prefix, ...queues] = process.argv.slice(2);
const connection = new Redis(url, { maxRetriesPerRequest: null });

async function work(job) {
  const { id, name, data, opts, queueName } = job;
  const said = { id, name, data, opts, queue: queueName, payloads: data?.payloads };
  appendFileSync(process.env.REDISAGG_TEST_RECEIVED, `${JSON.stringify(said)}\n`);
}

for (const queue of queues) {
  new Worker(queue, work, { connection, prefix, concurrency: 4 });
}
