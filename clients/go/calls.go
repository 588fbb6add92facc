package moltwire

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"math"
	mathrand "math/rand/v2"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	apiv1 "moltwire.dev/client/gen/moltwire/api/v1"
)

const (
	firstWait       = 100 * time.Millisecond
	longestWait     = 5 * time.Second
	longestFeedWait = 10 * time.Second
)

// calls is what every call goes through: its key, its deadline, being sent again where its error says so; and feeds that go on over lost connections.
type calls struct {
	apiKey      string
	timeout     time.Duration
	maxAttempts int
	onProblem   func(error)
}

func (c *calls) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// WrapUnary sends a call at most maxAttempts times, within its deadline, with one idempotency key.
func (c *calls) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		method := request.Spec().Schema.(protoreflect.MethodDescriptor)
		name := string(method.Name())
		header := request.Header()
		c.authorize(header)
		// A heartbeat needs none: a second one does what the first did.
		if kindOf(method) == apiv1.Kind_KIND_COMMAND && !strings.HasPrefix(name, "Heartbeat") && header.Get("Idempotency-Key") == "" {
			header.Set("Idempotency-Key", randomName())
		}
		// The deadline of SubmitTask becomes the task's, which takes as long as its contract lets it.
		if _, has := ctx.Deadline(); !has && c.timeout > 0 && name != "SubmitTask" {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.timeout)
			defer cancel()
		}
		for failures := 0; ; failures++ {
			response, err := next(ctx, request)
			if err == nil {
				return response, nil
			}
			err = typedError(ctx, err)
			wait, worth := retryWait(err, failures, longestWait)
			if failures+1 >= c.maxAttempts || !worth || wait > longestWait+firstWait {
				return nil, err
			}
			if deadline, has := ctx.Deadline(); has && time.Until(deadline) < wait {
				return nil, err
			}
			c.onProblem(err)
			if !pause(ctx, wait) {
				return nil, err
			}
		}
	}
}

// WrapStreamingClient makes feeds resume by themselves; other streams have the key and typed errors.
func (c *calls) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		ctx, cancel := context.WithCancel(ctx)
		method := spec.Schema.(protoreflect.MethodDescriptor)
		if place, is := placeOf(method); is {
			feed := &feed{calls: c, next: next, ctx: ctx, cancel: cancel, spec: spec, place: place, header: http.Header{}}
			c.authorize(feed.header)
			return feed
		}
		conn := next(ctx, spec)
		c.authorize(conn.RequestHeader())
		return &stream{StreamingClientConn: conn, ctx: ctx, cancel: cancel}
	}
}

func (c *calls) authorize(header http.Header) {
	if c.apiKey != "" {
		header.Set("Authorization", "Bearer "+c.apiKey)
	}
}

// stream is a stream with typed errors, which hangs up when it is closed.
type stream struct {
	connect.StreamingClientConn
	ctx    context.Context
	cancel context.CancelFunc
}

func (s *stream) Receive(message any) error {
	err := s.StreamingClientConn.Receive(message)
	if err == nil {
		return nil
	}
	// It is over, also where nobody closes it.
	defer s.cancel()
	return typedError(s.ctx, err)
}

func (s *stream) CloseResponse() error {
	s.cancel()
	_ = s.StreamingClientConn.CloseResponse()
	return nil
}

// kindOf gives what a method promises.
func kindOf(method protoreflect.MethodDescriptor) apiv1.Kind {
	access, _ := proto.GetExtension(method.Options(), apiv1.E_Access).(*apiv1.Access)
	return access.GetKind()
}

// retryWait says how long to wait before the same call is worth sending again, and whether it is. What the server says (RetryInfo) is kept to.
func retryWait(err error, failures int, longest time.Duration) (time.Duration, bool) {
	var failure *Failure
	if !errors.As(err, &failure) {
		return 0, false
	}
	if failure.RetryAfter >= 0 {
		return failure.RetryAfter + time.Duration(mathrand.Float64()*float64(firstWait)), true
	}
	switch failure.Reason {
	// The reasons whose documentation says to try again, without saying when; and a lost connection.
	case "STILL_RUNNING", "SHUTTING_DOWN", "OUTCOME_UNKNOWN", "OVERLOADED", "STORAGE_UNAVAILABLE", "UNREACHABLE":
		return backoff(failures, longest), true
	}
	return 0, false
}

// backoff is the wait after so many failures in a row: doubled each time up to longest, and by chance down to half of that.
func backoff(failures int, longest time.Duration) time.Duration {
	whole := math.Min(float64(longest), float64(firstWait)*math.Pow(2, float64(min(failures, 20))))
	return time.Duration(whole * (0.5 + mathrand.Float64()/2))
}

// pause waits so long; it says whether it was not ended early.
func pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// randomName gives 32 hexadecimal digits that nothing else has.
func randomName() string {
	bytes := make([]byte, 16)
	_, _ = rand.Read(bytes)
	return hex.EncodeToString(bytes)
}
