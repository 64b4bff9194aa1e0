// Adds tasks to an aggregator and prints how many were new: ADDRESS NAME SCRIPTS COUNT LIMITS
// SCRIPTS is a folder with the expanded scripts, LIMITS are the named limits of each task.
package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/redis/go-redis/v9"
	"github.com/vmihailenco/msgpack/v5"
)

func source(name string) string {
	text, _ := os.ReadFile(os.Args[3] + "/" + name + ".lua")
	return string(text)
}

func main() {
	if os.Args[4] == "submit" {
		submit()
		return
	}
	ctx, client := context.Background(), redis.NewClient(&redis.Options{Addr: os.Args[1]})
	register, add := redis.NewScript(source("register")), redis.NewScript(source("add"))
	registerPartition := redis.NewScript(source("register_partition"))
	prefix, partitions, count, added := "redisagg:{"+os.Args[2], 16, 0, int64(0)
	meta, _ := register.Run(ctx, client, []string{prefix + "}:meta"}, 1, partitions).StringSlice()
	fmt.Sscan(meta[1]+" "+os.Args[4], &partitions, &count)
	for partition := range partitions {
		registerPartition.Run(ctx, client, []string{fmt.Sprintf("%s:%d}:state", prefix, partition)}, partitions)
	}
	for n := range count {
		group := fmt.Sprint("g", n%10)
		partition := int(crc32.ChecksumIEEE([]byte(group))) % partitions
		own := fmt.Sprintf("%s:%d}:", prefix, partition)
		keys := []string{own + "state", own + "groups", own + "due", own + "ready",
			own + "call:go", own + "seen", own + "seen_before", own + "tasks:" + group, own + "ids:" + group}
		body, _ := msgpack.Marshal([]any{"from-go", map[string]int{"n": n}, map[string]string{"by": "go"}})
		reply := add.Run(ctx, client, keys, "", 600000, prefix+"}:wake", fmt.Sprintf("%d/%d", partition, partitions),
			0, 0, "", group, "120000 600000 20 0", "1 3", fmt.Sprint("go-", n), body, os.Args[5])
		switch answer := reply.Val().([]any)[0].(type) { // panics if the call was refused
		case int64:
			added += answer
		case []any: // new tasks, and tasks that have replaced one
			added += answer[0].(int64)
		default:
			panic(answer)
		}
	}
	fmt.Println(added)
}
