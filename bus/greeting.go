// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	agentv1 "bulkhead/proto/agent/v1"
)

// GreetingEntropy is the least that a greeting must bring: what the key of the
// guest's random number generator holds.
const GreetingEntropy = 32

// Greet says whose machine it is, as the first message of a session on a guest's
// control port. The bus connection follows.
func Greet(session interface{ Send(b []byte) error }, g *agentv1.Greeting) error {
	b, err := proto.Marshal(g)
	if err != nil {
		return fmt.Errorf("greet the guest of %s: %w", g.Vm, err)
	}
	if err := session.Send(b); err != nil {
		return fmt.Errorf("greet the guest of %s: %w", g.Vm, err)
	}
	return nil
}

// Greeted waits for the host's greeting, in the guest.
func Greeted(session interface{ Recv() ([]byte, error) }) (*agentv1.Greeting, error) {
	b, err := session.Recv()
	if err != nil {
		return nil, fmt.Errorf("waiting for the host's greeting: %w", err)
	}
	g := &agentv1.Greeting{}
	if err := proto.Unmarshal(b, g); err != nil {
		return nil, fmt.Errorf("understanding the host's greeting: %w", err)
	}
	if g.Vm == "" || len(g.Entropy) < GreetingEntropy {
		return nil, errors.New("the host's greeting brings no name, or too little entropy")
	}
	return g, nil
}
