// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-hclog"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"
)

// maxAgentInFlight bounds the requests a guest's agent runs at once.
const maxAgentInFlight = 64

// AgentServer answers the host's requests on agent.<sandbox>.rpc.<method>. It
// is a Service without the announcements: a guest may not publish those.
type AgentServer struct {
	sandbox string
	d       *dispatcher
}

// AgentOption changes an AgentServer.
type AgentOption func(*AgentServer)

// AgentLog tells of handlers that panicked and of ignored requests.
func AgentLog(log hclog.Logger) AgentOption { return func(s *AgentServer) { s.d.log = log } }

// NewAgentServer makes the server; HandleAgent gives it methods.
func NewAgentServer(nc *nats.Conn, sandbox string, options ...AgentOption) *AgentServer {
	s := &AgentServer{sandbox: sandbox, d: newDispatcher(context.Background(), nc, "agent "+sandbox, agentErrorHeaders, nil, maxAgentInFlight)}
	for _, o := range options {
		o(s)
	}
	return s
}

// HandleAgent adds a method, as Handle does.
func HandleAgent[Req, Resp proto.Message](s *AgentServer, method string, fn func(context.Context, Req) (Resp, error)) error {
	return handle(s.d, queueGroup, AgentSubject(s.sandbox, method), method, fn)
}

// Stop takes no more requests and waits for the running ones, as Service.Stop.
func (s *AgentServer) Stop(ctx context.Context) error { return s.d.stop(ctx) }

// PublishAgentEvent says something on agent.<sandbox>.ev.<topic>. It is sent
// once and kept nowhere: the host treats it as a hint.
func PublishAgentEvent(nc *nats.Conn, sandbox, topic string, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode agent event %s: %w", topic, err)
	}
	if err := nc.Publish(AgentEventSubject(sandbox, topic), body); err != nil {
		return fmt.Errorf("publish agent event %s: %w", topic, err)
	}
	return nil
}

// What may wait of one guest's events. Those beyond are dropped: events are
// hints, and a guest that floods must not fill the host's memory with them.
const (
	maxWaitingEvents     = 512
	maxWaitingEventBytes = 1 << 20
)

// OnAgentEvent calls fn, on the host, with each event of a topic that the guest
// of a sandbox publishes. What does not decode is dropped, and said once: the
// log is not the guest's to fill. What does decode is still the guest's word.
// Unsubscribe ends it.
func OnAgentEvent[T proto.Message](c *Conn, sandbox, topic string, fn func(T)) (*nats.Subscription, error) {
	said := false // the callbacks of a subscription run one after the other
	sub, err := c.nc.Subscribe(AgentEventSubject(sandbox, topic), func(msg *nats.Msg) {
		m := newMessage[T]()
		if err := unmarshal(encodingProto, msg.Data, m); err != nil {
			if !said {
				said = true
				c.log.Warn("guest event dropped, and so will be others like it", "sandbox", sandbox, "topic", topic, "error", cleanText(err.Error(), maxHeaderText))
			}
			return
		}
		fn(m)
	})
	if err != nil {
		return nil, fmt.Errorf("watch events of sandbox %s: %w", sandbox, err)
	}
	if err := sub.SetPendingLimits(maxWaitingEvents, maxWaitingEventBytes); err != nil {
		_ = sub.Unsubscribe()
		return nil, fmt.Errorf("watch events of sandbox %s: %w", sandbox, err)
	}
	// The subscription must stand when the caller goes on to wake the guest.
	if err := c.nc.FlushTimeout(defaultDialTimeout); err != nil {
		_ = sub.Unsubscribe()
		return nil, fmt.Errorf("watch events of sandbox %s: %w", sandbox, err)
	}
	return sub, nil
}
