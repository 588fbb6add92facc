package moltwire

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	apiv1 "moltwire.dev/client/gen/moltwire/api/v1"
)

// place is where the messages of a feed tell their place, and where its request says to go on after one.
type place struct{ told, after protoreflect.Name }

var places = []place{{"cursor", "after_cursor"}, {"sequence", "after_sequence"}, {"revision", "after_revision"}}

// beginnings say where to begin, and may not stand beside a place.
var beginnings = []protoreflect.Name{"start", "from_start"}

// placeOf tells the place of a feed; there is none for what is no feed, and for feeds of work.
func placeOf(method protoreflect.MethodDescriptor) (place, bool) {
	if kindOf(method) == apiv1.Kind_KIND_FEED {
		for _, each := range places {
			if method.Output().Fields().ByName(each.told) != nil && method.Input().Fields().ByName(each.after) != nil {
				return each, true
			}
		}
	}
	return place{}, false
}

// feed is a stream that goes on over lost connections: nothing is lost, repeated or reordered, since each round begins after the last message that was taken. Until
// it has begun it is tried maxAttempts times; after that for ever. It is opened when the first message is wanted.
type feed struct {
	calls    *calls
	next     connect.StreamingClientFunc
	ctx      context.Context
	cancel   context.CancelFunc
	spec     connect.Spec
	place    place
	header   http.Header
	request  proto.Message
	round    connect.StreamingClientConn
	hasBegun bool
	isOpen   bool
	failures int
}

func (f *feed) Spec() connect.Spec         { return f.spec }
func (f *feed) Peer() connect.Peer         { return connect.Peer{} }
func (f *feed) RequestHeader() http.Header { return f.header }
func (f *feed) CloseRequest() error        { return nil }

func (f *feed) Send(message any) error {
	f.request = proto.Clone(message.(proto.Message))
	return nil
}

func (f *feed) ResponseHeader() http.Header {
	if f.round == nil {
		return http.Header{}
	}
	return f.round.ResponseHeader()
}

func (f *feed) ResponseTrailer() http.Header {
	if f.round == nil {
		return http.Header{}
	}
	return f.round.ResponseTrailer()
}

// CloseResponse hangs up.
func (f *feed) CloseResponse() error {
	f.cancel()
	f.end()
	return nil
}

func (f *feed) Receive(message any) error {
	err := f.follow(message)
	if err != nil {
		// It is over, also where nobody closes it.
		f.cancel()
	}
	return err
}

// follow takes the next message, in as many rounds as that needs.
func (f *feed) follow(message any) error {
	for {
		err := f.receive(message)
		if err == nil {
			f.goOnAfter(message.(proto.Message).ProtoReflect())
			f.hasBegun, f.isOpen, f.failures = true, true, 0
			return nil
		}
		wasOpen := f.isOpen
		f.end()
		if isEnd(err) {
			return err
		}
		err = typedError(f.ctx, err)
		if f.ctx.Err() != nil {
			return err
		}
		// What broke off in the middle without a reason is a lost connection, in whatever way it shows.
		if wasOpen && !isTyped(err) {
			err = unreachable(err)
		}
		wait, worth := retryWait(err, f.failures, longestFeedWait)
		f.failures++
		if !worth || (!f.hasBegun && f.failures >= f.calls.maxAttempts) {
			return err
		}
		f.calls.onProblem(err)
		if !pause(f.ctx, wait) {
			return err
		}
	}
}

// receive takes a message of this round, which it opens where there is none.
func (f *feed) receive(message any) error {
	if f.round == nil {
		f.round = f.next(f.ctx, f.spec)
		maps.Copy(f.round.RequestHeader(), f.header)
		// io.EOF says that the server ended the stream: Receive then tells why.
		if err := f.round.Send(f.request); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := f.round.CloseRequest(); err != nil {
			return err
		}
	}
	return f.round.Receive(message)
}

func (f *feed) end() {
	if f.round != nil {
		_ = f.round.CloseResponse()
	}
	f.round, f.isOpen = nil, false
}

// goOnAfter writes into the request with which to go on after this message.
func (f *feed) goOnAfter(message protoreflect.Message) {
	request := f.request.ProtoReflect()
	fields := request.Descriptor().Fields()
	for _, name := range beginnings {
		if field := fields.ByName(name); field != nil {
			request.Clear(field)
		}
	}
	request.Set(fields.ByName(f.place.after), message.Get(message.Descriptor().Fields().ByName(f.place.told)))
}
