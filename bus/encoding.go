// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// encoding is how a body is written.
type encoding string

const (
	encodingProto encoding = "application/protobuf"
	encodingJSON  encoding = "application/json"
)

// requestEncoding says how a request is written: an explicit Content-Type wins,
// else an empty body or one that begins with '{' is JSON. That is safe because
// '{' would be protobuf field 15 as a group, which no encoder of proto3 emits.
func requestEncoding(h nats.Header, body []byte) (encoding, error) {
	if named := headerValue(h, HeaderContentType); named != "" {
		return parseEncoding(HeaderContentType, named)
	}
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] == '{' {
		return encodingJSON, nil
	}
	return encodingProto, nil
}

// replyEncoding is that of Accept if present, else that of the request.
func replyEncoding(h nats.Header, request encoding) (encoding, error) {
	if named := headerValue(h, HeaderAccept); named != "" && named != "*/*" {
		return parseEncoding(HeaderAccept, named)
	}
	return request, nil
}

func parseEncoding(header, value string) (encoding, error) {
	name, _, _ := strings.Cut(value, ";")
	switch name = strings.ToLower(strings.TrimSpace(name)); name {
	case string(encodingProto), "application/x-protobuf":
		return encodingProto, nil
	case string(encodingJSON):
		return encodingJSON, nil
	}
	return "", Errorf(InvalidArgument, "header %s: %q is not an encoding of this bus; use %s or %s", header, value, encodingProto, encodingJSON)
}

func marshal(enc encoding, m proto.Message) ([]byte, error) {
	if enc == encodingJSON {
		return protojson.Marshal(m)
	}
	return proto.Marshal(m)
}

// unmarshal reads a body into m. JSON is strict, as a person's typing error
// must not be silently ignored; protobuf keeps unknown fields, so that an older
// program can talk to a newer one.
func unmarshal(enc encoding, body []byte, m proto.Message) error {
	if enc == encodingJSON {
		if len(bytes.TrimSpace(body)) == 0 {
			return nil
		}
		if err := protojson.Unmarshal(body, m); err != nil {
			// protojson writes its prefix with a varying kind of space, to keep programs from matching it.
			text := strings.TrimLeft(strings.TrimPrefix(err.Error(), "proto:"), " \u00a0")
			return fmt.Errorf("not a valid JSON %s: %s", m.ProtoReflect().Descriptor().FullName(), text)
		}
		return nil
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return fmt.Errorf("not a valid protobuf %s", m.ProtoReflect().Descriptor().FullName())
	}
	return nil
}

// newMessage makes an empty T, whose nil pointer knows its own type.
func newMessage[T proto.Message]() T {
	var none T
	return none.ProtoReflect().New().Interface().(T)
}

// headerValue looks a header up without regard to case, as people type
// content-type and nats.Header is exact.
func headerValue(h nats.Header, name string) string {
	if v := h.Get(name); v != "" {
		return v
	}
	for k, v := range h {
		if len(v) > 0 && strings.EqualFold(k, name) {
			return v[0]
		}
	}
	return ""
}
