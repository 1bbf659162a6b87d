// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"
)

// monitor answers $SRV.PING, $SRV.INFO and $SRV.STATS for a service, which is
// what "nats micro ls", "info" and "stats" ask.
type monitor struct {
	identity micro.ServiceIdentity
	subs     []*nats.Subscription
}

func (m *monitor) start(s *Service) error {
	m.identity = micro.ServiceIdentity{
		Name: s.cfg.Name, ID: nuid.Next(), Version: s.cfg.Version,
		Metadata: map[string]string{"host": s.conn.host},
	}
	answers := map[micro.Verb]func() any{
		micro.PingVerb:  func() any { return micro.Ping{ServiceIdentity: m.identity, Type: micro.PingResponseType} },
		micro.InfoVerb:  func() any { return s.info() },
		micro.StatsVerb: func() any { return s.stats() },
	}
	for verb, answer := range answers {
		for _, scope := range [][2]string{{"", ""}, {m.identity.Name, ""}, {m.identity.Name, m.identity.ID}} {
			subject, err := micro.ControlSubject(verb, scope[0], scope[1])
			if err != nil {
				return fmt.Errorf("subject of %s: %w", verb, err)
			}
			sub, err := s.conn.nc.Subscribe(subject, func(msg *nats.Msg) {
				if !strings.HasPrefix(msg.Reply, inboxRoot) {
					return
				}
				if body, err := json.Marshal(answer()); err == nil {
					_ = msg.Respond(body) // the asker may be gone; nobody else cares
				}
			})
			if err != nil {
				m.stop()
				return err
			}
			m.subs = append(m.subs, sub)
		}
	}
	return nil
}

func (m *monitor) stop() {
	for _, sub := range m.subs {
		_ = sub.Unsubscribe() // fails only when the connection is gone, and the subscription with it
	}
	m.subs = nil
}

func (s *Service) info() micro.Info {
	info := micro.Info{ServiceIdentity: s.monitor.identity, Type: micro.InfoResponseType, Description: s.cfg.Description}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, ep := range s.d.endpoints {
		info.Endpoints = append(info.Endpoints, micro.EndpointInfo{
			Name: ep.name, Subject: ep.subject, QueueGroup: queueGroup,
			Metadata: map[string]string{
				"request": string(ep.request), "reply": string(ep.reply),
				"encodings": string(encodingProto) + ", " + string(encodingJSON),
			},
		})
	}
	return info
}

func (s *Service) stats() micro.Stats {
	all := micro.Stats{ServiceIdentity: s.monitor.identity, Type: micro.StatsResponseType, Started: s.started.UTC()}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, ep := range s.d.endpoints {
		v := ep.stats.snapshot()
		all.Endpoints = append(all.Endpoints, &micro.EndpointStats{
			Name: ep.name, Subject: ep.subject, QueueGroup: queueGroup,
			NumRequests: v.requests, NumErrors: v.errors, LastError: v.last,
			ProcessingTime: v.spent, AverageProcessingTime: v.average,
		})
	}
	return all
}
