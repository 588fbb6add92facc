package moltwire

import (
	"encoding/json"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

// ValueOf gives what encoding/json takes, as the protocol carries it. Numbers are doubles: integers beyond 2^53 lose digits.
func ValueOf(from any) (*structpb.Value, error) {
	text, err := json.Marshal(from)
	if err != nil {
		return nil, err
	}
	value := &structpb.Value{}
	return value, protojson.Unmarshal(text, value)
}

// Decode reads a value that the protocol carries into `into`, as encoding/json does. A value that is not there is null.
func Decode(value *structpb.Value, into any) error {
	if value.GetKind() == nil {
		return json.Unmarshal([]byte("null"), into)
	}
	text, err := protojson.Marshal(value)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
