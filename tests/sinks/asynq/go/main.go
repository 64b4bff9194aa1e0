// What the tests ask of the real Asynq: go run . COMMAND REDIS_ADDRESS ...
//
// The address is host:port, or cluster:host:port of a node of a cluster.
//
//	enqueue              enqueues the tasks on standard input, a JSON object a line
//	inspect QUEUE        prints what asynq.Inspector says about a queue
//	serve QUEUE...       runs a server; prints each task that its handler gets
//	aggregate QUEUE HOW  runs a server with a GroupAggregator that merges, or returns nil, or
//	                     panics, or whose process dies between enqueue and clean-up
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// order is a task to be enqueued by Asynq's own client. Spans are seconds, times Unix times.
type order struct {
	Type, ID, Queue, Group string
	Payload                []byte
	Headers                map[string]string
	MaxRetry               *int `json:"max_retry"`
	Timeout, Retention     int
	Deadline               int64
	Unique                 int
	ProcessAt              int64 `json:"process_at"`
	ProcessIn              int   `json:"process_in"`
}

func (o order) options() []asynq.Option {
	opts := []asynq.Option{}
	add := func(given bool, opt asynq.Option) {
		if given {
			opts = append(opts, opt)
		}
	}
	add(o.ID != "", asynq.TaskID(o.ID))
	add(o.Queue != "", asynq.Queue(o.Queue))
	add(o.Group != "", asynq.Group(o.Group))
	add(o.Timeout != 0, asynq.Timeout(seconds(o.Timeout)))
	add(o.Retention != 0, asynq.Retention(seconds(o.Retention)))
	add(o.Deadline != 0, asynq.Deadline(time.Unix(o.Deadline, 0)))
	add(o.Unique != 0, asynq.Unique(seconds(o.Unique)))
	add(o.ProcessAt != 0, asynq.ProcessAt(time.Unix(o.ProcessAt, 0)))
	add(o.ProcessIn != 0, asynq.ProcessIn(seconds(o.ProcessIn)))
	if o.MaxRetry != nil {
		add(true, asynq.MaxRetry(*o.MaxRetry))
	}
	return opts
}

// email is what a user's handler decodes a payload into.
type email struct {
	UserID int       `json:"user_id"`
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	Tags   []string  `json:"tags"`
	Raw    []byte    `json:"raw"`
}

var printing sync.Mutex

func say(what any) {
	line, err := json.Marshal(what)
	check(err)
	printing.Lock()
	defer printing.Unlock()
	fmt.Println(string(line))
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// unix is 0 for no time at all; in TaskInfo, the epoch stands for that too.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func enqueue(conn asynq.RedisConnOpt) {
	client := asynq.NewClient(conn)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o order
		check(json.Unmarshal(lines.Bytes(), &o))
		task := asynq.NewTaskWithHeaders(o.Type, o.Payload, o.Headers)
		_, err := client.Enqueue(task, o.options()...)
		said := map[string]string{"error": ""}
		if err != nil {
			said["error"] = err.Error()
		}
		say(said)
	}
}

func describe(tasks []*asynq.TaskInfo, err error) []map[string]any {
	check(err)
	all := []map[string]any{}
	for _, t := range tasks {
		all = append(all, map[string]any{
			"id": t.ID, "type": t.Type, "payload": t.Payload, "headers": t.Headers,
			"queue": t.Queue, "state": t.State.String(), "max_retry": t.MaxRetry,
			"timeout": t.Timeout.Seconds(), "deadline": unix(t.Deadline),
			"retention": t.Retention.Seconds(), "next": unix(t.NextProcessAt),
		})
	}
	return all
}

func inspect(conn asynq.RedisConnOpt, queue string) {
	inspector := asynq.NewInspector(conn)
	queues, err := inspector.Queues()
	check(err)
	info, err := inspector.GetQueueInfo(queue)
	check(err)
	all := asynq.PageSize(1000)
	say(map[string]any{
		"queues": queues, "size": info.Size, "groups": info.Groups,
		"pending":   describe(inspector.ListPendingTasks(queue, all)),
		"scheduled": describe(inspector.ListScheduledTasks(queue, all)),
		"completed": describe(inspector.ListCompletedTasks(queue, all)),
		"archived":  describe(inspector.ListArchivedTasks(queue, all)),
	})
}

func handle(ctx context.Context, task *asynq.Task) error {
	id, _ := asynq.GetTaskID(ctx)
	queue, _ := asynq.GetQueueName(ctx)
	retry, _ := asynq.GetMaxRetry(ctx)
	deadline, _ := ctx.Deadline()
	said := map[string]any{
		"id": id, "queue": queue, "max_retry": retry, "type": task.Type(),
		"payload": task.Payload(), "headers": task.Headers(), "deadline": unix(deadline),
	}
	if task.Type() == "email:send" {
		var mail email
		if err := json.Unmarshal(task.Payload(), &mail); err != nil {
			return err
		}
		said["email"] = mail
	}
	say(said)
	if task.Type() == "fail" {
		return errors.New("told to fail")
	}
	return nil
}

func config(queues []string) asynq.Config {
	weights := map[string]int{}
	for _, queue := range queues {
		weights[queue] = 1
	}
	return asynq.Config{
		Concurrency:              4,
		Queues:                   weights,
		LogLevel:                 asynq.ErrorLevel,
		DelayedTaskCheckInterval: 200 * time.Millisecond,
		ShutdownTimeout:          time.Second,
		RetryDelayFunc:           func(int, error, *asynq.Task) time.Duration { return time.Hour },
	}
}

func serve(conn asynq.RedisConnOpt, queues []string) {
	server := asynq.NewServer(conn, config(queues))
	check(server.Start(asynq.HandlerFunc(handle)))
	say("ready")
	select {}
}

// deathBeforeCleanUp ends the process when Asynq is about to delete what it has just enqueued.
type deathBeforeCleanUp struct{}

func (deathBeforeCleanUp) DialHook(next redis.DialHook) redis.DialHook { return next }
func (deathBeforeCleanUp) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
func (deathBeforeCleanUp) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		args := cmd.Args()
		if len(args) > 4 && strings.HasPrefix(cmd.Name(), "eval") && fmt.Sprint(args[2]) == "2" &&
			strings.HasSuffix(fmt.Sprint(args[4]), ":aggregation_sets") {
			os.Exit(137)
		}
		return next(ctx, cmd)
	}
}

// aggregate runs Asynq's own grouping, with a grace period of a second. Only it is at work: the
// queue that the server takes tasks from is paused by the test.
func aggregate(address, queue, how string) {
	client := redis.NewClient(&redis.Options{Addr: address})
	if how == "die" {
		client.AddHook(deathBeforeCleanUp{})
	}
	cfg := config([]string{queue})
	cfg.GroupGracePeriod = time.Second
	cfg.GroupMaxSize = 100
	cfg.GroupAggregator = asynq.GroupAggregatorFunc(func(group string, tasks []*asynq.Task) *asynq.Task {
		say(map[string]any{"group": group, "tasks": len(tasks)})
		switch how {
		case "nil":
			return nil
		case "panic":
			panic("told to panic")
		}
		lines := []string{}
		for _, task := range tasks {
			lines = append(lines, string(task.Payload()))
		}
		return asynq.NewTask("merged", []byte(strings.Join(lines, ",")))
	})
	server := asynq.NewServerFromRedisClient(client, cfg)
	check(server.Start(asynq.HandlerFunc(handle)))
	say("ready")
	select {}
}

func main() {
	command, address, rest := os.Args[1], os.Args[2], os.Args[3:]
	var conn asynq.RedisConnOpt = asynq.RedisClientOpt{Addr: address}
	if node, ok := strings.CutPrefix(address, "cluster:"); ok {
		conn = asynq.RedisClusterClientOpt{Addrs: []string{node}}
	}
	switch command {
	case "enqueue":
		enqueue(conn)
	case "inspect":
		inspect(conn, rest[0])
	case "serve":
		serve(conn, rest)
	case "aggregate":
		aggregate(address, rest[0], rest[1])
	}
}
