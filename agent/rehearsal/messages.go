// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package rehearsal

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	agentv1 "bulkhead/proto/agent/v1"
	netv1 "bulkhead/proto/net/v1"
)

// useMessages encodes and decodes a message of each type that the host and the agent can exchange: what protobuf has to
// know of a type it finds out at its first use, and keeps.
func useMessages() error {
	for _, file := range []protoreflect.FileDescriptor{agentv1.File_agent_v1_agent_proto, netv1.File_net_v1_net_proto} {
		for i := range file.Messages().Len() {
			t, err := protoregistry.GlobalTypes.FindMessageByName(file.Messages().Get(i).FullName())
			if err != nil {
				return fmt.Errorf("looking for a message: %w", err)
			}
			m := t.New()
			for j := range m.Descriptor().Fields().Len() {
				switch f := m.Descriptor().Fields().Get(j); {
				case f.Message() == nil || f.IsMap():
				case f.IsList():
					m.Mutable(f).List().AppendMutable()
				default:
					m.Mutable(f)
				}
			}
			b, err := proto.Marshal(m.Interface())
			if err == nil {
				err = proto.Unmarshal(b, t.New().Interface())
			}
			if err != nil {
				return fmt.Errorf("using %s: %w", m.Descriptor().FullName(), err)
			}
		}
	}
	return nil
}
