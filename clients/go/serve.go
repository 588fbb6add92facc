package moltwire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	agentv1 "moltwire.dev/client/gen/moltwire/agent/v1"
	busv1 "moltwire.dev/client/gen/moltwire/bus/v1"
)

const (
	maxMessageLength  = 4_096
	maxProgressLength = 1_024
	longestOpenWait   = 10 * time.Second
)

// Handler does one task: it gives its output, whatever encoding/json takes, or an error, which another try may mend unless it is a TaskError that says otherwise. Its
// context ends when the task is canceled, timed out or another's: its answer is not used any more.
type Handler func(ctx context.Context, task *Task) (any, error)

// TaskError says that the work failed, and whether another try may mend it.
type TaskError struct {
	Message   string
	Retryable bool
}

func (e *TaskError) Error() string { return e.Message }

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
		inHand:   map[string]*giveUp{},
	}
	// What is on its way would be lost by hanging up: the server is told, and ends the stream after the last delivery.
	stopWatching := context.AfterFunc(ctx, func() {
		if server.read(streams, true, func() {}) != nil {
			hangUp()
		}
	})
	defer stopWatching()
	if err := server.keepOpen(ctx, streams); err != nil {
		server.letAllGo()
		return err
	}
	server.works.Wait()
	return nil
}

type giveUp struct{ cancel context.CancelFunc }

type server struct {
	bus      *Moltwire
	handler  Handler
	options  ServeOptions
	instance string
	mu       sync.Mutex
	inHand   map[string]*giveUp
	works    sync.WaitGroup
}

// keepOpen reads until the context ends; it fails with what another try does not mend, and tells everything else.
func (s *server) keepOpen(ctx, streams context.Context) error {
	for failures := 0; ctx.Err() == nil; failures++ {
		err := s.read(streams, false, func() { failures = 0 })
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if isHopeless(err) {
				return err
			}
			s.options.OnProblem(err)
		}
		pause(ctx, backoff(failures, longestOpenWait))
	}
	return nil
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
			s.take(delivery)
		} else if id := events.Msg().GetRevokedTaskId(); id != "" {
			s.letGo(id)
		}
	}
	return events.Err()
}

// take begins a task; what was begun under its id before is another's now.
func (s *server) take(delivery *busv1.TaskDelivery) {
	id := delivery.GetTask().GetTaskId()
	ctx, cancel := context.WithCancel(context.Background())
	give := &giveUp{cancel}
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.inHand[id]; before != nil {
		before.cancel()
	}
	s.inHand[id] = give
	s.works.Go(func() {
		defer cancel()
		s.work(ctx, cancel, delivery)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.inHand[id] == give {
			delete(s.inHand, id)
		}
	})
}

func (s *server) letGo(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if give := s.inHand[id]; give != nil {
		give.cancel()
	}
}

func (s *server) letAllGo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, give := range s.inHand {
		give.cancel()
	}
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
	beating, done := context.WithCancel(ctx)
	var beats sync.WaitGroup
	beats.Go(func() { s.beat(beating, giveUp, delivery, task) })
	defer beats.Wait()
	defer done()
	answer := &busv1.RespondTaskRequest{TaskId: task.ID, LeaseToken: delivery.GetLeaseToken()}
	output, err := s.handle(ctx, task)
	if err != nil {
		failure := &busv1.TaskFailure{Message: cut(err.Error(), maxMessageLength), Retryable: true}
		var said *TaskError
		if errors.As(err, &said) {
			failure.Retryable = said.Retryable
		}
		answer.Outcome = &busv1.RespondTaskRequest_Failure{Failure: failure}
	} else {
		answer.Outcome = &busv1.RespondTaskRequest_Output{Output: output}
	}
	task.mu.Lock()
	answer.Usage = task.usage
	task.mu.Unlock()
	if err := s.untilAnswered(ctx, answer, fmt.Sprintf("%s-%d", task.ID, task.Attempt)); err != nil && ctx.Err() == nil {
		s.options.OnProblem(err)
	}
}

// handle does the task; a panic is a failure as well.
func (s *server) handle(ctx context.Context, task *Task) (value *structpb.Value, err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("the handler panicked: %v", panicked)
		}
	}()
	output, err := s.handler(ctx, task)
	if err != nil {
		return nil, err
	}
	return ValueOf(output)
}

// beat sends a heartbeat in every third of the lease, until the work is answered or let go.
func (s *server) beat(ctx context.Context, giveUp context.CancelFunc, delivery *busv1.TaskDelivery, task *Task) {
	pace := delivery.GetLease().AsDuration() / 3
	for pause(ctx, pace) {
		task.mu.Lock()
		progress := task.progress
		task.progress = nil
		task.mu.Unlock()
		request := &busv1.HeartbeatTaskRequest{TaskId: task.ID, LeaseToken: delivery.GetLeaseToken(), Progress: progress}
		within, cancel := context.WithTimeout(ctx, pace)
		answer, err := s.bus.Bus.HeartbeatTask(within, request)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		// A lost heartbeat is made good by the next one; a lost lease is not.
		case err != nil && connect.CodeOf(err) == connect.CodeFailedPrecondition, answer.GetCancelRequested():
			giveUp()
		case err != nil:
			s.options.OnProblem(err)
		}
	}
}

// untilAnswered calls until the server has answered, whatever it says; the key makes it one answer. As long as the lease is there it is worth it.
func (s *server) untilAnswered(ctx context.Context, answer *busv1.RespondTaskRequest, key string) error {
	for failures := 0; ctx.Err() == nil; failures++ {
		with, call := connect.NewClientContext(ctx)
		call.RequestHeader().Set("Idempotency-Key", key)
		_, err := s.bus.Bus.RespondTask(with, answer)
		if err == nil || !mayPass(err) {
			return err
		}
		pause(ctx, backoff(failures, longestWait))
	}
	return ctx.Err()
}

// mayPass says whether the same call again may be answered.
func mayPass(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeInternal, connect.CodeUnknown, connect.CodeAborted, connect.CodeDeadlineExceeded:
		return true
	}
	return false
}

// isHopeless says whether another try does not mend it. What no server told is a connection that broke, in whatever way it shows.
func isHopeless(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnimplemented:
		return true
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeFailedPrecondition:
		return isTyped(err)
	}
	return false
}

// cut keeps at most so many characters.
func cut(text string, most int) string {
	runes := []rune(text)
	return string(runes[:min(len(runes), most)])
}
