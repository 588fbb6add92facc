package moltwire

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	agentv1 "moltwire.dev/client/gen/moltwire/agent/v1"
	busv1 "moltwire.dev/client/gen/moltwire/bus/v1"
)

// Handler does one task: it gives its output, whatever encoding/json takes, or an error, which another try may mend unless it is a TaskError that says otherwise. Its
// context ends when the task is canceled, timed out or another's: its answer is not used any more.
type Handler func(ctx context.Context, task *Task) (any, error)

// ServeOptions say how tasks are served.
type ServeOptions struct {
	// Capacity is how many tasks are in work at once, from 1 to 1,000. Default 1.
	Capacity int32
	// Lease is how long the server waits for a sign of life of a task, from 1 s to 1 h. Heartbeats go out by themselves in every third of it. Default 30 s.
	Lease time.Duration
	// AgentID is the agent to serve for, with an administrator's key.
	AgentID string
	// OnProblem hears why the stream broke, before it is opened anew, and why an answer or a heartbeat did not arrive. Default: nobody.
	OnProblem func(error)
}

// Task is a task in the hands of a handler.
type Task struct {
	ID string
	// Attempt counts from 1.
	Attempt         int32
	ContractID      string
	ContractVersion string
	Capability      string
	// MaxTokens is the tokens to use at most; 0 for no bound.
	MaxTokens int64
	// Traceparent is the W3C trace context to send on with calls.
	Traceparent string

	input    *structpb.Value
	mu       sync.Mutex
	progress *agentv1.Progress
	usage    *agentv1.Usage
}

// Decode reads the input, as encoding/json does.
func (t *Task) Decode(into any) error { return Decode(t.input, into) }

// Progress tells how far the work is, from 0 to 1, with the next heartbeat.
func (t *Task) Progress(fraction float64, message string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.progress = &agentv1.Progress{Fraction: min(1, max(0, fraction)), Message: cut(message, maxProgressLength)}
}

// Usage tells what the work consumed, with the answer.
func (t *Task) Usage(usage *agentv1.Usage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.usage = usage
}

// Serve does the tasks of the key's agent, whose endpoint must be `pull`, until the context ends: then nothing new is taken, what is in hand is finished, and it returns
// nil. It fails when the server refuses for good, such as for a revoked key. Everything else is tried again.
func (m *Moltwire) Serve(ctx context.Context, handler Handler, options ServeOptions) error {
	if options.Lease == 0 {
		options.Lease = 30 * time.Second
	}
	if options.OnProblem == nil {
		options.OnProblem = func(error) {}
	}
	streams, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	server := &server{
		bus:     m,
		handler: handler,
		options: options,
		// Under this name a stream that is opened anew goes on with what is in hand.
		instance: randomName(),
		hand:     hand{inHand: map[string]*giveUp{}},
	}
	// What is on its way would be lost by hanging up: the server is told, and ends the stream after the last delivery.
	stopWatching := context.AfterFunc(ctx, func() {
		if server.read(streams, true, func() {}) != nil {
			hangUp()
		}
	})
	defer stopWatching()
	read := func(onMessage func()) error { return server.read(streams, false, onMessage) }
	if err := keepOpen(ctx, read, options.OnProblem); err != nil {
		server.hand.letAllGo()
		return err
	}
	server.hand.works.Wait()
	return nil
}

type server struct {
	bus      *Moltwire
	handler  Handler
	options  ServeOptions
	instance string
	hand     hand
}

func (s *server) read(streams context.Context, drain bool, onMessage func()) error {
	events, err := s.bus.Bus.Serve(streams, &busv1.ServeRequest{
		AgentId:  s.options.AgentID,
		Capacity: s.options.Capacity,
		Lease:    durationpb.New(s.options.Lease),
		Instance: s.instance,
		Drain:    drain,
	})
	if err != nil {
		return typedError(streams, err)
	}
	defer func() { _ = events.Close() }()
	for events.Receive() {
		onMessage()
		if delivery := events.Msg().GetDelivery(); delivery != nil {
			s.hand.take(delivery.GetTask().GetTaskId(), func(ctx context.Context, giveUp context.CancelFunc) { s.work(ctx, giveUp, delivery) })
		} else if id := events.Msg().GetRevokedTaskId(); id != "" {
			s.hand.letGo(id)
		}
	}
	return events.Err()
}

// work does one task under its lease. What goes wrong is an answer to the server, or told to OnProblem.
func (s *server) work(ctx context.Context, giveUp context.CancelFunc, delivery *busv1.TaskDelivery) {
	given := delivery.GetTask()
	task := &Task{
		ID:              given.GetTaskId(),
		Attempt:         given.GetAttempt(),
		ContractID:      given.GetContractId(),
		ContractVersion: given.GetContractVersion(),
		Capability:      given.GetCapability(),
		MaxTokens:       given.GetMaxTokens(),
		Traceparent:     given.GetTraceparent(),
		input:           given.GetInput(),
	}
	defer beating(ctx, giveUp, delivery.GetLease().AsDuration(), s.options.OnProblem, func(within context.Context) (bool, error) {
		task.mu.Lock()
		progress := task.progress
		task.progress = nil
		task.mu.Unlock()
		request := &busv1.HeartbeatTaskRequest{TaskId: task.ID, LeaseToken: delivery.GetLeaseToken(), Progress: progress}
		answer, err := s.bus.Bus.HeartbeatTask(within, request)
		return answer.GetCancelRequested(), err
	})()
	answer := &busv1.RespondTaskRequest{TaskId: task.ID, LeaseToken: delivery.GetLeaseToken()}
	output, err := s.handle(ctx, task)
	if err != nil {
		message, retryable := failureOf(err)
		answer.Outcome = &busv1.RespondTaskRequest_Failure{Failure: &busv1.TaskFailure{Message: message, Retryable: retryable}}
	} else {
		answer.Outcome = &busv1.RespondTaskRequest_Output{Output: output}
	}
	task.mu.Lock()
	answer.Usage = task.usage
	task.mu.Unlock()
	respond := func(with context.Context) error {
		_, err := s.bus.Bus.RespondTask(with, answer)
		return err
	}
	if err := untilAnswered(ctx, fmt.Sprintf("%s-%d", task.ID, task.Attempt), respond); err != nil && ctx.Err() == nil {
		s.options.OnProblem(err)
	}
}

// handle does the task; a panic is a failure as well.
func (s *server) handle(ctx context.Context, task *Task) (value *structpb.Value, err error) {
	defer recovered(&err)
	output, err := s.handler(ctx, task)
	if err != nil {
		return nil, err
	}
	return ValueOf(output)
}
