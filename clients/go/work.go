package moltwire

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	queuev1 "moltwire.dev/client/gen/moltwire/queue/v1"
)

// JobHandler does one job: it gives its result, which is bytes, whatever encoding/json takes, or nil for none; or an error, which another try may mend unless it is a
// TaskError that says otherwise. Its context ends when the job is canceled or another's: its result is not used any more.
type JobHandler func(ctx context.Context, job *Job) (any, error)

// WorkOptions say how jobs are worked on.
type WorkOptions struct {
	// Queues to take from. Default: `default`.
	Queues []string
	// Capacity is how many jobs are in work at once, from 1 to 100. Default 1.
	Capacity int32
	// Lease is how long the server waits for a sign of life of a job, from 1 s to 1 h. Heartbeats go out by themselves in every third of it. Default 30 s.
	Lease time.Duration
	// AgentID is the agent to work for, with an administrator's key.
	AgentID string
	// OnProblem hears why the stream broke, before it is opened anew, and why a result or a heartbeat did not arrive. Default: nobody.
	OnProblem func(error)
}

// Job is a job in the hands of a handler. Besides its payload it has everything the protocol tells of it, such as its tags and the progress of the attempt before.
type Job struct {
	*queuev1.Job

	mu       sync.Mutex
	progress *queuev1.JobProgress
}

// Decode reads the payload, where that is JSON, as encoding/json does; bytes are in GetPayload().GetData().
func (j *Job) Decode(into any) error { return Decode(j.GetPayload().GetJson(), into) }

// Traceparent is the W3C trace context to send on with calls; empty when there is none.
func (j *Job) Traceparent() string {
	if j.GetTraceId() == "" || j.GetSpanId() == "" {
		return ""
	}
	return fmt.Sprintf("00-%s-%s-01", j.GetTraceId(), j.GetSpanId())
}

// Progress tells how far the work is, from 0 to 1, with the next heartbeat, and where another attempt can go on: `details`, at most 4 KiB, or nil.
func (j *Job) Progress(fraction float64, message string, details *structpb.Struct) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.progress = &queuev1.JobProgress{Fraction: min(1, max(0, fraction)), Message: cut(message, maxProgressLength), Details: details}
}

// Work does the jobs of queues until the context ends: then nothing new is taken, what is in hand is finished, and it returns nil. What was on its way then is another's when
// its lease has run out. It fails when the server refuses for good, such as for a revoked key. Everything else is tried again.
func (m *Moltwire) Work(ctx context.Context, handler JobHandler, options WorkOptions) error {
	if options.Lease == 0 {
		options.Lease = 30 * time.Second
	}
	if options.OnProblem == nil {
		options.OnProblem = func(error) {}
	}
	worker := &worker{
		mw:      m,
		handler: handler,
		options: options,
		// A stream that is opened anew brings jobs while those of the one before are still in work: they wait for a place, under their leases.
		places: make(chan struct{}, max(1, options.Capacity)),
		hand:   hand{inHand: map[string]*giveUp{}},
	}
	read := func(onMessage func()) error { return worker.read(ctx, onMessage) }
	if err := keepOpen(ctx, read, options.OnProblem); err != nil {
		worker.hand.letAllGo()
		return err
	}
	worker.hand.works.Wait()
	return nil
}

type worker struct {
	mw      *Moltwire
	handler JobHandler
	options WorkOptions
	places  chan struct{}
	hand    hand
}

func (w *worker) read(ctx context.Context, onMessage func()) error {
	events, err := w.mw.Queue.Work(ctx, &queuev1.WorkRequest{
		AgentId:  w.options.AgentID,
		Queues:   w.options.Queues,
		Capacity: w.options.Capacity,
		Lease:    durationpb.New(w.options.Lease),
	})
	if err != nil {
		return typedError(ctx, err)
	}
	defer func() { _ = events.Close() }()
	for events.Receive() {
		onMessage()
		if leased := events.Msg().GetJob(); leased != nil {
			w.hand.take(leased.GetJob().GetJobId(), func(ctx context.Context, giveUp context.CancelFunc) { w.work(ctx, giveUp, leased) })
		} else if id := events.Msg().GetLostJobId(); id != "" {
			w.hand.letGo(id)
		}
	}
	return events.Err()
}

// work does one job under its lease. What goes wrong is an answer to the server, or told to OnProblem.
func (w *worker) work(ctx context.Context, giveUp context.CancelFunc, leased *queuev1.LeasedJob) {
	job := &Job{Job: leased.GetJob()}
	id, token := job.GetJobId(), leased.GetLeaseToken()
	defer beating(ctx, giveUp, w.options.Lease, w.options.OnProblem, func(within context.Context) (bool, error) {
		job.mu.Lock()
		progress := job.progress
		job.progress = nil
		job.mu.Unlock()
		answer, err := w.mw.Queue.HeartbeatJob(within, &queuev1.HeartbeatJobRequest{JobId: id, LeaseToken: token, Progress: progress})
		return answer.GetCancelRequested(), err
	})()
	result, err := w.handle(ctx, job)
	answer := func(with context.Context) error {
		if err != nil {
			message, retryable := failureOf(err)
			failure := &queuev1.JobError{Message: message}
			_, err := w.mw.Queue.FailJob(with, &queuev1.FailJobRequest{JobId: id, LeaseToken: token, Error: failure, Retryable: retryable})
			return err
		}
		_, err := w.mw.Queue.CompleteJob(with, &queuev1.CompleteJobRequest{JobId: id, LeaseToken: token, Result: result})
		return err
	}
	if err := untilAnswered(ctx, fmt.Sprintf("%s-%d", id, job.GetAttempts()), answer); err != nil && ctx.Err() == nil {
		w.options.OnProblem(err)
	}
}

// handle does the job when there is a place for it; a panic is a failure as well.
func (w *worker) handle(ctx context.Context, job *Job) (payload *queuev1.Payload, err error) {
	select {
	case w.places <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-w.places }()
	defer recovered(&err)
	result, err := w.handler(ctx, job)
	if err != nil || result == nil {
		return nil, err
	}
	if data, is := result.([]byte); is {
		return &queuev1.Payload{Kind: &queuev1.Payload_Data{Data: data}}, nil
	}
	value, err := ValueOf(result)
	return &queuev1.Payload{Kind: &queuev1.Payload_Json{Json: value}}, err
}
