// Package moltwire is the client of a Moltwire server: every service, an error type for each reason, and Serve, by which a program without a port is an agent.
package moltwire

import (
	"context"
	"crypto/tls"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"
	busv1 "moltwire.dev/client/gen/moltwire/bus/v1"
)

const maxMessageBytes = 16 << 20

// Options say where a server is and who calls.
type Options struct {
	// URL is where the server listens. Default: the variable MOLTWIRE_URL, or http://127.0.0.1:6658.
	URL string
	// APIKey is the caller's key. Default: the variable MOLTWIRE_API_KEY.
	APIKey string
	// Timeout is how long a unary call may take, with all its attempts, unless its context has a deadline. Negative: for ever. Default 90 s. Not of SubmitTask, whose
	// deadline becomes the task's.
	Timeout time.Duration
	// MaxAttempts is how often a unary call is sent at most, and a feed that has not begun. Default 5; 1: never again.
	MaxAttempts int
	// OnProblem hears of each failure before the call is sent again, and before a feed is opened anew. Default: nobody.
	OnProblem func(error)
	// TLS are the settings for https, instead of the machine's.
	TLS *tls.Config
	// Transport is used instead of an own one, which speaks HTTP/2 and notices dead connections within some 20 s.
	Transport http.RoundTripper
}

// Moltwire has clients of every service for one key, and what is said often in one word.
type Moltwire struct {
	Services
	transport http.RoundTripper
}

// Connect gives clients of every service over one connection, which is opened at the first call and again whenever it breaks.
//
// Commands have an idempotency key, one for all attempts; a call is sent again only where its error says so. Feeds go on over lost connections. Queries go by HTTP GET. What
// fails, fails with the type of its reason.
func Connect(options Options) *Moltwire {
	fallback := func(given, variable, otherwise string) string {
		if given != "" {
			return given
		}
		if value := os.Getenv(variable); value != "" {
			return value
		}
		return otherwise
	}
	url := fallback(options.URL, "MOLTWIRE_URL", "http://127.0.0.1:6658")
	calls := &calls{
		apiKey:      fallback(options.APIKey, "MOLTWIRE_API_KEY", ""),
		timeout:     options.Timeout,
		maxAttempts: options.MaxAttempts,
		onProblem:   options.OnProblem,
	}
	if calls.timeout == 0 {
		calls.timeout = 90 * time.Second
	}
	if calls.maxAttempts == 0 {
		calls.maxAttempts = 5
	}
	if calls.onProblem == nil {
		calls.onProblem = func(error) {}
	}
	transport := options.Transport
	if transport == nil {
		transport = newTransport(options.TLS)
	}
	services := newServices(
		&http.Client{Transport: transport},
		url,
		connect.WithInterceptors(calls),
		connect.WithReadMaxBytes(maxMessageBytes),
		connect.WithHTTPGet(),
		connect.WithHTTPGetMaxURLSize(4_096, true),
	)
	return &Moltwire{Services: services, transport: transport}
}

func newTransport(config *tls.Config) *http.Transport {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	protocols.SetHTTP2(true)
	return &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		Protocols:       &protocols,
		TLSClientConfig: config,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
}

// Close ends connections that nobody uses.
func (m *Moltwire) Close() {
	if transport, is := m.transport.(interface{ CloseIdleConnections() }); is {
		transport.CloseIdleConnections()
	}
}

// Call has a task done, and decodes its output into `output`, unless that is nil. The input is whatever encoding/json takes.
//
// It fails with the error of the call, or with that of the task (its id is About["task_id"]), each of the type of its reason. A task that somebody has to approve
// first is awaited until it has ended.
func (m *Moltwire) Call(ctx context.Context, contractID string, input, output any) error {
	value, err := ValueOf(input)
	if err != nil {
		return err
	}
	submitted, err := m.Bus.SubmitTask(ctx, &busv1.SubmitTaskRequest{ContractId: contractID, Input: value})
	if err != nil {
		return err
	}
	task := submitted.GetTask()
	if task.GetEndTime() == nil {
		if task, err = m.ended(ctx, task); err != nil {
			return err
		}
	}
	if task.GetState() != busv1.TaskState_TASK_STATE_COMPLETED {
		return taskFailure(task.GetTaskId(), task.GetError())
	}
	if output == nil {
		return nil
	}
	return Decode(task.GetOutput(), output)
}

func (m *Moltwire) ended(ctx context.Context, task *busv1.Task) (*busv1.Task, error) {
	steps, err := m.Bus.WatchTask(ctx, &busv1.WatchTaskRequest{OrgId: task.GetOrgId(), TaskId: task.GetTaskId()})
	if err != nil {
		return nil, err
	}
	defer func() { _ = steps.Close() }()
	for steps.Receive() {
		if last := steps.Msg().GetTask(); last != nil {
			task = last
		}
	}
	return task, steps.Err()
}
