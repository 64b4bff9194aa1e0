// The benchmarks of Asynq: client and server of the real module.
//
//	asynq add     -n N -c GOROUTINES     prints adds/s with asynq.Group
//	asynq drain   -n N -size S           prints tasks/s of the aggregator, for tasks added before
//	asynq latency -n N                   prints ms from a full group to the handler, one per line
//	asynq idle    -n GROUPS -for D       opens groups that are not due and serves for D
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
)

const queue = "bench"

var payload = []byte(strings.Repeat("x", 200))

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func add(client *asynq.Client, group string) {
	_, err := client.Enqueue(asynq.NewTask("t", payload), asynq.Queue(queue), asynq.Group(group))
	check(err)
}

// addAll adds n tasks over the groups from c goroutines and returns the time it took.
func addAll(client *asynq.Client, n, c, groups int) time.Duration {
	var next atomic.Int64
	var wait sync.WaitGroup
	start := time.Now()
	for range c {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				add(client, fmt.Sprintf("g%d", i%groups))
			}
		}()
	}
	wait.Wait()
	return time.Since(start)
}

// serve starts a server. Its aggregator makes an empty task of each batch and calls merged.
func serve(opt asynq.RedisConnOpt, size int, grace time.Duration, merged func(string, int), done func()) *asynq.Server {
	server := asynq.NewServer(opt, asynq.Config{
		Queues:           map[string]int{queue: 1},
		Concurrency:      4,
		LogLevel:         asynq.ErrorLevel,
		GroupMaxSize:     size,
		GroupGracePeriod: grace,
		GroupMaxDelay:    10 * time.Minute,
		GroupAggregator: asynq.GroupAggregatorFunc(func(group string, tasks []*asynq.Task) *asynq.Task {
			merged(group, len(tasks))
			return asynq.NewTask("merged", nil)
		}),
	})
	handler := asynq.HandlerFunc(func(context.Context, *asynq.Task) error { done(); return nil })
	check(server.Start(handler))
	return server
}

func main() {
	mode := os.Args[1]
	flags := flag.NewFlagSet(mode, flag.ExitOnError)
	addr := flags.String("redis", "127.0.0.1:6379", "address")
	n := flags.Int("n", 10000, "number of tasks, groups or rounds")
	c := flags.Int("c", 1, "goroutines")
	groups := flags.Int("groups", 1000, "groups")
	size := flags.Int("size", 100, "max size")
	span := flags.Duration("for", 10*time.Second, "duration")
	check(flags.Parse(os.Args[2:]))
	opt := asynq.RedisClientOpt{Addr: *addr, PoolSize: 64}
	client := asynq.NewClient(opt)

	switch mode {
	case "add":
		took := addAll(client, *n, *c, *groups)
		fmt.Printf("%.0f\n", float64(*n)/took.Seconds())
	case "drain":
		addAll(client, *n, 32, *n / *size)
		var seen atomic.Int64
		all := make(chan time.Time, 1)
		start := time.Now()
		serve(opt, *size, 10*time.Minute, func(_ string, count int) {
			if seen.Add(int64(count)) >= int64(*n) {
				all <- time.Now()
			}
		}, func() {})
		fmt.Printf("%.0f\n", float64(*n)/(<-all).Sub(start).Seconds())
	case "latency":
		handled := make(chan time.Time, 1)
		serve(opt, 10, 10*time.Minute, func(string, int) {}, func() { handled <- time.Now() })
		for i := range *n {
			time.Sleep(time.Duration(i%7) * time.Second / 3) // so that rounds are not in phase with its ticker
			for range 10 {
				add(client, fmt.Sprintf("l%d", i))
			}
			filled := time.Now()
			fmt.Printf("%.3f\n", float64((<-handled).Sub(filled).Microseconds())/1000)
		}
	case "idle":
		addAll(client, *n, 32, *n)
		fmt.Println("ready")
		server := serve(opt, 100, 9*time.Minute, func(string, int) {}, func() {})
		time.Sleep(*span)
		server.Shutdown()
	}
}
