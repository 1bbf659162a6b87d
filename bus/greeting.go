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
	if g.Rehearse != nil {
		return g, nil // it makes the guest nobody, so it brings nothing
	}
	if g.Vm == "" || len(g.Entropy) < GreetingEntropy {
		return nil, errors.New("the host's greeting brings no name, or too little entropy")
	}
	return g, nil
}

// AskRehearsal has a guest that is nobody rehearse, on a session of its control port, and
// returns what it says of that. The session is of no more use then.
func AskRehearsal(session interface {
	Send(b []byte) error
	Recv() ([]byte, error)
}, with *agentv1.Rehearsal) (*agentv1.Rehearsed, error) {
	if err := Greet(session, &agentv1.Greeting{Rehearse: with}); err != nil {
		return nil, err
	}
	b, err := session.Recv()
	if err != nil {
		return nil, fmt.Errorf("waiting for a guest that rehearses: %w", err)
	}
	r := &agentv1.Rehearsed{}
	if err := proto.Unmarshal(b, r); err != nil {
		return nil, errors.New("what the guest says of its rehearsal cannot be understood")
	}
	r.Error = cleanText(r.Error, maxHeaderText)
	return r, nil
}

// TellRehearsed is the guest's answer.
func TellRehearsed(session interface{ Send(b []byte) error }, r *agentv1.Rehearsed) error {
	b, err := proto.Marshal(r)
	if err != nil {
		return fmt.Errorf("telling of the rehearsal: %w", err)
	}
	return session.Send(b)
}
