package moltwire

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	apiv1 "moltwire.dev/client/gen/moltwire/api/v1"
	busv1 "moltwire.dev/client/gen/moltwire/bus/v1"
)

const errorDomain = "moltwire.dev"

// Failure is what errors of all reasons have. There is a type for each reason, with the reason's values as methods:
//
//	var budget *moltwire.BudgetExceeded
//	if errors.As(err, &budget) { log.Print(budget.Limit()) }
//
// A reason that this version of the client does not know, of a newer server, is a *Failure itself. Each is a *connect.Error too, for errors.As.
type Failure struct {
	// Reason is its name, such as `BUDGET_EXCEEDED`.
	Reason string
	// Message says what is wrong, for people.
	Message string
	// Code is that of Connect and gRPC.
	Code connect.Code
	// About has the values the reason names, as they came.
	About map[string]string
	// RetryAfter is how long the server says to wait before the same call is worth repeating; negative when it says nothing.
	RetryAfter time.Duration
	// Fields are the fields of the request that are wrong.
	Fields []FieldViolation

	from error
}

// FieldViolation is one field of a request that is wrong.
type FieldViolation struct{ Field, Description string }

// Error tells the code and the message.
func (f *Failure) Error() string { return f.Code.String() + ": " + f.Message }

// Unwrap gives the error as it came.
func (f *Failure) Unwrap() error { return f.from }

// TraceID is the trace in which the call stands, in the server's log too.
func (f *Failure) TraceID() string { return f.text("trace_id") }

func (f *Failure) text(key string) string { return f.About[key] }

func (f *Failure) number(key string) float64 {
	number, _ := strconv.ParseFloat(f.About[key], 64)
	return number
}

func (f *Failure) time(key string) time.Time {
	at, _ := time.Parse(time.RFC3339Nano, f.About[key])
	return at
}

// Unreachable says that no Moltwire server answered, or that the connection was lost before the answer came: whether a command was carried out is not known.
type Unreachable struct{ *Failure }

// Unwrap gives what errors of all reasons have.
func (e *Unreachable) Unwrap() error { return e.Failure }

func reasonError(failure *Failure) error {
	if typed, known := reasonErrors[failure.Reason]; known {
		return typed(failure)
	}
	return failure
}

func unreachable(err error) error {
	message := err.Error()
	if from := (*connect.Error)(nil); errors.As(err, &from) {
		message = from.Message()
	}
	// A new error: one that wraps io.EOF would be taken for the end of a stream.
	lost := connect.NewError(connect.CodeUnavailable, errors.New(message))
	return &Unreachable{&Failure{Reason: "UNREACHABLE", Message: message, Code: connect.CodeUnavailable, RetryAfter: -1, from: lost}}
}

// isEnd says whether a server ended a stream as it should. A connection that was lost has an io.EOF inside too, and another code.
func isEnd(err error) bool {
	var from *connect.Error
	return errors.Is(err, io.EOF) && (!errors.As(err, &from) || from.Code() == connect.CodeUnknown)
}

// isTyped says whether a server, or this client, has said why.
func isTyped(err error) bool {
	var failure *Failure
	return errors.As(err, &failure)
}

// typedError gives the error as callers get it: of the type of its reason; Unreachable when no server told one; DeadlineExceeded when this side's deadline passed. What is
// none of these, such as a call whose context was canceled, stays the error it was.
func typedError(ctx context.Context, err error) error {
	var from *connect.Error
	if isEnd(err) || isTyped(err) || !errors.As(err, &from) {
		return err
	}
	failure := &Failure{Message: from.Message(), Code: from.Code(), RetryAfter: -1, from: err}
	for _, detail := range from.Details() {
		message, err := detail.Value()
		if err != nil {
			continue
		}
		switch message := message.(type) {
		case *errdetails.ErrorInfo:
			if message.GetDomain() == errorDomain {
				failure.Reason, failure.About = message.GetReason(), message.GetMetadata()
			}
		case *errdetails.RetryInfo:
			failure.RetryAfter = message.GetRetryDelay().AsDuration()
		case *errdetails.BadRequest:
			for _, each := range message.GetFieldViolations() {
				failure.Fields = append(failure.Fields, FieldViolation{each.GetField(), each.GetDescription()})
			}
		}
	}
	if failure.Reason != "" {
		return reasonError(failure)
	}
	if from.Code() == connect.CodeDeadlineExceeded {
		failure.Reason = "DEADLINE_EXCEEDED"
		return reasonError(failure)
	}
	if ctx.Err() != nil {
		return err
	}
	switch from.Code() {
	case connect.CodeUnavailable, connect.CodeAborted, connect.CodeUnknown, connect.CodeInternal, connect.CodeCanceled:
		return unreachable(err)
	}
	return err
}

// taskFailure gives the error with which a task ended, of the type of its reason.
func taskFailure(taskID string, ended *busv1.TaskError) error {
	about := map[string]string{"task_id": taskID}
	for key, value := range ended.GetMetadata() {
		about[key] = value
	}
	reason := strings.TrimPrefix(apiv1.ErrorReason(ended.GetReason()).String(), "ERROR_REASON_")
	message := ended.GetMessage()
	if message == "" {
		message = "the task did not complete"
	}
	return reasonError(&Failure{Reason: reason, Message: message, Code: connect.CodeAborted, About: about, RetryAfter: -1})
}
