// What every client does, by the one for Go; see clients/conformance/README.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	moltwire "moltwire.dev/client"
	busv1 "moltwire.dev/client/gen/moltwire/bus/v1"
	memoryv1 "moltwire.dev/client/gen/moltwire/memory/v1"
	queuev1 "moltwire.dev/client/gen/moltwire/queue/v1"
	relayv1 "moltwire.dev/client/gen/moltwire/relay/v1"
)

type object map[string]any

var lines = bufio.NewReader(os.Stdin)

func print(line object) {
	text := must(json.Marshal(line))
	fmt.Println(string(text))
}

// want waits until something happened to the server.
func want(name, wants string) {
	print(object{"case": name, "wants": wants})
	must(lines.ReadString('\n'))
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// failed gives the class of an error, and what errors of all reasons have.
func failed(err error) (string, *moltwire.Failure) {
	var failure *moltwire.Failure
	if !errors.As(err, &failure) {
		log.Fatalf("the call was expected to fail with a reason, and had %v", err)
	}
	return reflect.TypeOf(err).Elem().Name(), failure
}

func shout(_ context.Context, task *moltwire.Task) (any, error) {
	var input struct{ Text string }
	if task.Decode(&input) != nil || input.Text == "" {
		return nil, &moltwire.TaskError{Message: "there is no text to shout"}
	}
	return object{"shouted": strings.ToUpper(input.Text)}, nil
}

// method remembers how the last request was made.
type method struct {
	http.RoundTripper
	last atomic.Value
}

func (m *method) RoundTrip(request *http.Request) (*http.Response, error) {
	m.last.Store(request.Method)
	return m.RoundTripper.RoundTrip(request)
}

func main() {
	ctx := context.Background()
	mw := moltwire.Connect(moltwire.Options{})
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- mw.Serve(serving, shout, moltwire.ServeOptions{}) }()

	value := func(from any) *memoryv1.Value {
		return &memoryv1.Value{Kind: &memoryv1.Value_Json{Json: must(moltwire.ValueOf(from))}}
	}
	write := &memoryv1.Write{Key: "greeting", Value: value(object{"hello": "world"})}
	must(mw.Memory.SetEntry(ctx, &memoryv1.SetEntryRequest{Write: write}))
	read := &memoryv1.GetEntryRequest{Key: "greeting"}
	var greeting any
	must(0, moltwire.Decode(must(mw.Memory.GetEntry(ctx, read)).GetEntry().GetValue().GetJson(), &greeting))
	print(object{"case": "unary", "saw": greeting})

	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	asked := &method{RoundTripper: &http.Transport{Protocols: &protocols}}
	byGet := moltwire.Connect(moltwire.Options{Transport: asked})
	must(0, moltwire.Decode(must(byGet.Memory.GetEntry(ctx, read)).GetEntry().GetValue().GetJson(), &greeting))
	print(object{"case": "get", "saw": object{"method": asked.last.Load(), "value": greeting}})

	_, err := mw.Memory.SetEntry(ctx, &memoryv1.SetEntryRequest{Write: &memoryv1.Write{Value: value(1)}})
	class, failure := failed(err)
	print(object{"case": "error-details", "saw": object{"class": class, "reason": failure.Reason, "field": failure.Fields[0].Field}})

	_, err = moltwire.Connect(moltwire.Options{APIKey: "mw_wrong"}).Memory.GetEntry(ctx, read)
	class, failure = failed(err)
	print(object{"case": "bad-key", "saw": object{"class": class, "reason": failure.Reason}})

	soon, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	wait := durationpb.New(30 * time.Second)
	_, err = mw.Queue.ClaimJobs(soon, &queuev1.ClaimJobsRequest{Queues: []string{"none"}, Wait: wait})
	cancel()
	class, failure = failed(err)
	print(object{"case": "deadline", "saw": object{"class": class, "reason": failure.Reason}})

	faulty := moltwire.Connect(moltwire.Options{URL: os.Getenv("CONFORMANCE_FAULTY_URL")})
	var ends []string
	for n := range 8 {
		if _, err := faulty.Queue.CancelJob(ctx, &queuev1.CancelJobRequest{JobId: fmt.Sprintf("job_%d", n)}); err != nil {
			_, failure := failed(err)
			ends = append(ends, failure.Reason)
		} else {
			ends = append(ends, "done")
		}
	}
	print(object{"case": "retries", "saw": ends})

	wire := moltwire.Connect(moltwire.Options{URL: os.Getenv("CONFORMANCE_WIRE_URL")})
	once := &queuev1.ListJobsRequest{Queue: "once"}
	must(wire.Queue.ListJobs(ctx, once))
	want("idempotent-retry", "lose the answer")
	payload := &queuev1.Payload{Kind: &queuev1.Payload_Json{Json: must(moltwire.ValueOf(1))}}
	told := must(wire.Queue.SubmitJob(ctx, &queuev1.SubmitJobRequest{Job: &queuev1.NewJob{Queue: "once", Payload: payload}}))
	jobs := must(mw.Queue.ListJobs(ctx, once)).GetJobs()
	same := jobs[0].GetJobId() == told.GetJob().GetJobId()
	print(object{"case": "idempotent-retry", "saw": object{"jobs": len(jobs), "told": same}})

	print(object{"case": "stream-resume", "saw": inbox(ctx, mw)})

	contract := os.Getenv("CONFORMANCE_CONTRACT_ID")
	var output any
	must(0, mw.Call(ctx, contract, object{"text": "hello"}, &output))
	_, failure = failed(mw.Call(ctx, contract, object{}, nil))
	task := must(mw.Bus.SubmitTask(ctx, &busv1.SubmitTaskRequest{ContractId: contract, Input: must(moltwire.ValueOf(object{"text": "again"}))})).GetTask()
	stop()
	print(object{"case": "serve", "saw": object{"output": output, "reason": failure.Reason, "ended": <-ended == nil}})

	var last string
	steps := must(mw.Bus.WatchTask(ctx, &busv1.WatchTaskRequest{TaskId: task.GetTaskId()}))
	for steps.Receive() {
		message := steps.Msg().ProtoReflect()
		last = string(message.WhichOneof(message.Descriptor().Oneofs().ByName("event")).Name())
	}
	must(0, steps.Err())
	print(object{"case": "stream-end", "saw": last})
	print(object{"case": "work", "saw": work(ctx, mw)})
}

// work does one job, at the second attempt.
func work(ctx context.Context, mw *moltwire.Moltwire) object {
	working, stop := context.WithCancel(ctx)
	job := func(id string) *queuev1.Job {
		return must(mw.Queue.GetJob(ctx, &queuev1.GetJobRequest{JobId: id})).GetJob()
	}
	handler := func(_ context.Context, given *moltwire.Job) (any, error) {
		if given.GetAttempts() == 1 {
			return nil, errors.New("once more")
		}
		given.Progress(0.5, "half", nil)
		for job(given.GetJobId()).GetProgress().GetFraction() != 0.5 {
			time.Sleep(100 * time.Millisecond)
		}
		stop()
		var payload struct{ Text string }
		err := given.Decode(&payload)
		return object{"shouted": strings.ToUpper(payload.Text)}, err
	}
	ended := make(chan error, 1)
	go func() {
		ended <- mw.Work(working, handler, moltwire.WorkOptions{Queues: []string{"work"}, Lease: 15 * time.Second})
	}()
	soon := durationpb.New(10 * time.Millisecond)
	asked := &queuev1.NewJob{
		Queue:       "work",
		Payload:     &queuev1.Payload{Kind: &queuev1.Payload_Json{Json: must(moltwire.ValueOf(object{"text": "hello"}))}},
		MaxAttempts: 3,
		Backoff:     &queuev1.Backoff{Initial: soon, Max: soon},
	}
	id := must(mw.Queue.SubmitJob(ctx, &queuev1.SubmitJobRequest{Job: asked})).GetJob().GetJobId()
	err := <-ended
	done := job(id)
	var result any
	must(0, moltwire.Decode(done.GetResult().GetJson(), &result))
	return object{"result": result, "attempts": done.GetAttempts(), "ended": err == nil}
}

// inbox reads it from the beginning; the server is killed in between.
func inbox(ctx context.Context, mw *moltwire.Moltwire) []any {
	from := int64(0)
	messages := must(mw.Relay.Subscribe(ctx, &relayv1.SubscribeRequest{AfterSequence: &from}))
	defer func() { _ = messages.Close() }()
	var heard []any
	for len(heard) < 60 && messages.Receive() {
		message := messages.Msg().GetMessage()
		if message == nil {
			continue
		}
		var payload any
		must(0, moltwire.Decode(message.GetPayload().GetJson(), &payload))
		switch heard = append(heard, payload); len(heard) {
		case 20:
			want("stream-resume", "kill the server")
		case 40:
			want("stream-resume", "roll the servers")
		}
	}
	must(0, messages.Err())
	return heard
}
