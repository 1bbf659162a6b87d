// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	busv1 "bulkhead/proto/bus/v1"
)

// queueGroup is the one that micro services use by default. With one instance
// per host it only shows in listings.
const queueGroup = "q"

// defaultMaxInFlight bounds the requests a service runs at once.
const defaultMaxInFlight = 256

// ServiceConfig describes a service.
type ServiceConfig struct {
	Name        string        // "vm": the second token of its subjects
	Version     string        // a semantic version, which the nats CLI insists on
	Description string        // one sentence
	Detail      func() string // a sentence for "status": what it does now; may be nil
	Ready       func() bool   // whether it can do its work; nil means from the start
	OwnStatus   bool          // the service handles "status" itself, by a reply that begins with the fields of ServiceStatus
	MaxInFlight int           // requests run at once; 0 means 256
	Log         hclog.Logger  // nil means silence
}

// Service answers on <host>.<name>.<method> and shows itself to "nats micro".
//
// It speaks the NATS micro protocol (nats-architecture-and-design, ADR-32)
// itself instead of through micro.AddService, which counts a request as done
// when its callback returns. Here requests run in goroutines, so only our own
// count is true.
type Service struct {
	conn    *Conn
	cfg     ServiceConfig
	d       *dispatcher
	started time.Time
	monitor monitor
}

// NewService starts a service on the connection. ctx gives its handlers their
// values; its end does not stop them, Stop does.
func NewService(ctx context.Context, c *Conn, cfg ServiceConfig) (*Service, error) {
	if cfg.Name == "" || Token(cfg.Name) != cfg.Name {
		return nil, Errorf(InvalidArgument, "service name %q is not one subject token", cfg.Name)
	}
	if cfg.Version == "" {
		cfg.Version = "0.0.0"
	}
	if cfg.MaxInFlight <= 0 {
		cfg.MaxInFlight = defaultMaxInFlight
	}
	s := &Service{
		conn: c, cfg: cfg, started: time.Now(),
		d: newDispatcher(ctx, c.nc, "service "+cfg.Name, serviceErrorHeaders, cfg.Log, cfg.MaxInFlight),
	}
	if !cfg.OwnStatus {
		if err := Handle(s, "status", s.status); err != nil {
			return nil, err
		}
	}
	if err := s.monitor.start(s); err != nil {
		return nil, fmt.Errorf("announce service %s: %w", cfg.Name, err)
	}
	return s, nil
}

// Handle adds a method, served at <host>.<service>.<method>:
//
//	bus.Handle(svc, "create", func(ctx context.Context, req *vmv1.CreateRequest) (*vmv1.CreateReply, error) { … })
//
// The handler runs in a goroutine of its own; ctx carries the caller's deadline
// and operation id. Requests may be protobuf or JSON and are answered likewise.
func Handle[Req, Resp proto.Message](s *Service, method string, fn func(context.Context, Req) (Resp, error)) error {
	return handle(s.d, queueGroup, s.conn.Subject(s.cfg.Name, method), method, fn)
}

// Announced waits until the server knows of every method: whoever asks from then
// on is answered. A connection that is down tells it when it is up again.
func (s *Service) Announced(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, defaultDialTimeout)
	defer cancel()
	_ = s.conn.nc.FlushWithContext(ctx)
}

// ServeUntil serves until ctx ends, then stops, giving the requests under way
// that long.
func (s *Service) ServeUntil(ctx context.Context, drain time.Duration) error {
	<-ctx.Done()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	return s.Stop(stop)
}

// Stop takes no more requests, waits until the running ones are answered, and
// flushes. When ctx ends first, their contexts are cancelled.
func (s *Service) Stop(ctx context.Context) error {
	s.monitor.stop()
	return s.d.stop(ctx)
}

func (s *Service) status(context.Context, *busv1.StatusRequest) (*busv1.ServiceStatus, error) {
	return s.Status(), nil
}

// Status is what every service answers to "status".
func (s *Service) Status() *busv1.ServiceStatus {
	status := &busv1.ServiceStatus{
		Service: s.cfg.Name, Version: s.cfg.Version, Host: s.conn.host,
		Pid: int32(os.Getpid()), Started: timestamppb.New(s.started), Ready: true,
	}
	if s.cfg.Ready != nil {
		status.Ready = s.cfg.Ready()
	}
	if s.cfg.Detail != nil {
		status.Detail = s.cfg.Detail()
	}
	return status
}
