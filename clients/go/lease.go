package moltwire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
)

const (
	maxMessageLength  = 4_096
	maxProgressLength = 1_024
	longestOpenWait   = 10 * time.Second
)

// TaskError says that the work failed, and whether another try may mend it.
type TaskError struct {
	Message   string
	Retryable bool
}

func (e *TaskError) Error() string { return e.Message }

// failureOf gives what a handler that failed has to say of it, and whether another try may mend it.
func failureOf(err error) (message string, retryable bool) {
	retryable = true
	var said *TaskError
	if errors.As(err, &said) {
		retryable = said.Retryable
	}
	return cut(err.Error(), maxMessageLength), retryable
}

// recovered makes a panic of a handler its error.
func recovered(err *error) {
	if panicked := recover(); panicked != nil {
		*err = fmt.Errorf("the handler panicked: %v", panicked)
	}
}

// keepOpen reads until the context ends; it fails with what another try does not mend, and tells everything else. `read` calls back at each message.
func keepOpen(ctx context.Context, read func(onMessage func()) error, onProblem func(error)) error {
	for failures := 0; ctx.Err() == nil; failures++ {
		err := read(func() { failures = 0 })
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if isHopeless(err) {
				return err
			}
			onProblem(err)
		}
		pause(ctx, backoff(failures, longestOpenWait))
	}
	return nil
}

type giveUp struct{ cancel context.CancelFunc }

// hand has the pieces of work that are in hand, each by its id.
type hand struct {
	mu     sync.Mutex
	inHand map[string]*giveUp
	works  sync.WaitGroup
}

// take begins a piece of work; what was begun under its id before is another's now.
func (h *hand) take(id string, work func(ctx context.Context, giveUp context.CancelFunc)) {
	ctx, cancel := context.WithCancel(context.Background())
	give := &giveUp{cancel}
	h.mu.Lock()
	defer h.mu.Unlock()
	if before := h.inHand[id]; before != nil {
		before.cancel()
	}
	h.inHand[id] = give
	h.works.Go(func() {
		defer cancel()
		work(ctx, cancel)
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.inHand[id] == give {
			delete(h.inHand, id)
		}
	})
}

func (h *hand) letGo(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if give := h.inHand[id]; give != nil {
		give.cancel()
	}
}

func (h *hand) letAllGo() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, give := range h.inHand {
		give.cancel()
	}
}

// beating sends a heartbeat in every third of the lease, until the work is let go or what it returns is called. `beat` says whether somebody wants the work to end.
func beating(ctx context.Context, giveUp context.CancelFunc, lease time.Duration, onProblem func(error), beat func(context.Context) (bool, error)) (end func()) {
	ctx, done := context.WithCancel(ctx)
	pace := lease / 3
	var beats sync.WaitGroup
	beats.Go(func() {
		for pause(ctx, pace) {
			within, cancel := context.WithTimeout(ctx, pace)
			wanted, err := beat(within)
			cancel()
			switch {
			case ctx.Err() != nil:
				return
			// A lost heartbeat is made good by the next one; a lost lease is not.
			case err != nil && connect.CodeOf(err) == connect.CodeFailedPrecondition, wanted:
				giveUp()
			case err != nil:
				onProblem(err)
			}
		}
	})
	return func() {
		done()
		beats.Wait()
	}
}

// untilAnswered calls until the server has answered, whatever it says; the key makes it one answer. As long as the lease is there it is worth it.
func untilAnswered(ctx context.Context, key string, call func(context.Context) error) error {
	for failures := 0; ctx.Err() == nil; failures++ {
		with, info := connect.NewClientContext(ctx)
		info.RequestHeader().Set("Idempotency-Key", key)
		err := call(with)
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
