package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/redis/go-redis/v9"
	"github.com/vmihailenco/msgpack/v5"
)

// Submits one task and prints its outcome as JSON: ADDRESS NAME SCRIPTS submit GROUP ID
// The namespace has been registered, as in main.go.
func submit() {
	const partitions, keepMs = 16, 60_000
	ctx, client := context.Background(), redis.NewClient(&redis.Options{Addr: os.Args[1]})
	prefix, group, id := "redisagg:{"+os.Args[2], os.Args[5], os.Args[6]
	partition := int(crc32.ChecksumIEEE([]byte(group))) % partitions
	own := fmt.Sprintf("%s:%d}:", prefix, partition)
	answerKey := fmt.Sprintf("%sanswer:%d:%s:%s", own, len(group), group, id)

	listener := client.Subscribe(ctx, prefix+"}:answers")
	listener.Receive(ctx) // before the add, so that the message can't be missed

	var body bytes.Buffer
	encoder := msgpack.NewEncoder(&body)
	encoder.EncodeArrayLen(5)
	encoder.EncodeMulti("from-go", map[string]int{"n": 1}, nil, map[string]any{})
	encoder.EncodeUint32(keepMs) // always five bytes
	keys := []string{own + "state", own + "groups", own + "due", own + "ready", own + "call:submit",
		own + "seen", own + "seen_before", own + "tasks:" + group, own + "ids:" + group}
	reply := redis.NewScript(source("add")).Run(ctx, client, keys, "", 600000, prefix+"}:wake",
		fmt.Sprintf("%d/%d policies", partition, partitions), 0, 0, "",
		group, "120000 600000 1 0", "1 3", id, body.Bytes(), "")
	if reply.Err() != nil {
		panic(reply.Err())
	}
	if refused, is := reply.Val().([]any)[0].(string); is {
		panic(refused)
	}

	for message := range listener.Channel() {
		var flat [][]byte
		msgpack.Unmarshal([]byte(message.Payload), &flat)
		for n := 0; n < len(flat); n += 2 {
			if string(flat[n]) != answerKey {
				continue
			}
			record := flat[n+1]
			if len(record) == 0 { // it is too long for a message
				record, _ = client.Get(ctx, answerKey).Bytes()
			}
			var outcome []any
			msgpack.Unmarshal(record, &outcome)
			text, _ := json.Marshal(outcome)
			fmt.Println(string(text))
			return
		}
	}
}
