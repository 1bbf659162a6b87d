// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"bulkhead/bus"
	"bulkhead/bus/config"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// FilesOfVM is how many files the service holds open of each VM with one link: the namespace, the process it was found by and
// two sockets in it, and of the link the program that guards it and its four maps.
const FilesOfVM = 9

// Deps is what the net service needs to run.
type Deps struct {
	Conn    *bus.Conn
	RunDir  string // where the vm service's handover.sock is
	Config  config.Network
	Log     hclog.Logger
	Version string
	// Guard checks what VMs send; nil is the kernel's.
	Guard Guard
	// Failpoint, when set, is called before each step that changes something, with
	// its name, and its error is the step's. Only tests set it.
	Failpoint func(step string) error
	// Serving, when set, is called once the service answers.
	Serving func()
}

const (
	drainTime = 10 * time.Second
	// maxRequests is above the default as each watch waits in one.
	maxRequests = 1024
)

// Service is the net service.
//
// Lock order: attachment.op, then Service.mu. feed.mu is a leaf.
type Service struct {
	conn    *bus.Conn
	runDir  string
	owner   string // of the devices that this host's service makes
	cfg     config.Network
	log     hclog.Logger
	guard   Guard
	step    func(string) error
	records *bus.Bucket[*netv1.Attachment]
	feed    *feed

	closeGuard func()

	life    context.Context // ends with the service; what it made stays
	endLife context.CancelFunc
	tasks   sync.WaitGroup

	mu          sync.Mutex             // guards the maps
	attachments map[string]*attachment // by sandbox
	namespaces  map[netspace.ID]string // which sandbox has a namespace
}

// Run serves until ctx ends. What it made stays, so that the networks of VMs
// work on; the next Run takes it over.
func Run(ctx context.Context, d Deps) error {
	s, err := newService(ctx, d)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.reconcile(ctx); err != nil {
		return err
	}
	s.tasks.Go(s.keepRecorded)
	svc, err := s.serve(ctx, d.Version)
	if err != nil {
		return err
	}
	svc.Announced(ctx)
	if d.Serving != nil {
		d.Serving()
	}
	stop := context.AfterFunc(ctx, s.feed.close) // waiting watches answer
	defer stop()
	return svc.ServeUntil(ctx, drainTime)
}

func newService(ctx context.Context, d Deps) (*Service, error) {
	records, err := bus.OpenBucket[*netv1.Attachment](ctx, d.Conn, bus.BucketNetworks)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(d.Conn.Host() + "\x00" + filepath.Clean(d.RunDir)))
	s := &Service{
		conn: d.Conn, runDir: d.RunDir, owner: hex.EncodeToString(sum[:4]), cfg: d.Config,
		log: d.Log, guard: d.Guard, step: d.Failpoint, records: records, feed: newFeed(),
		attachments: map[string]*attachment{}, namespaces: map[netspace.ID]string{},
	}
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	if s.guard == nil {
		k := newKernelGuard()
		s.guard, s.closeGuard = k, k.Close
	}
	if s.step == nil {
		s.step = func(string) error { return nil }
	}
	s.life, s.endLife = context.WithCancel(context.WithoutCancel(ctx))
	return s, nil
}

func (s *Service) serve(ctx context.Context, version string) (*bus.Service, error) {
	svc, err := bus.NewService(ctx, s.conn, bus.ServiceConfig{
		Name: "net", Version: version,
		Description: "networks of VMs",
		Detail:      s.detail,
		MaxInFlight: maxRequests,
		Log:         s.log,
	})
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		bus.Handle(svc, "attach", s.attach),
		bus.Handle(svc, "open", s.open),
		bus.Handle(svc, "dial", s.dial),
		bus.Handle(svc, "detach", s.detach),
		bus.Handle(svc, "list", s.list),
		bus.Handle(svc, "inspect", s.inspect),
		bus.Handle(svc, "watch", s.watch),
		bus.Handle(svc, "stats", s.stats),
	)
	if err != nil {
		return nil, errors.Join(err, svc.Stop(ctx))
	}
	return svc, nil
}

// close lets go of everything and leaves what was made.
func (s *Service) close() {
	s.endLife()
	s.tasks.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.attachments {
		if a.ns != nil {
			a.ns.Close()
		}
	}
	if s.closeGuard != nil {
		s.closeGuard()
	}
}

// detail is the sentence "status" shows.
func (s *Service) detail() string {
	attachments, nics := 0, 0
	for _, a := range s.all() {
		attachments++
		nics += len(a.GetNics())
	}
	protection := "may send only from their own addresses"
	if !s.cfg.SpoofProtection {
		protection = "may send from any address"
	}
	return fmt.Sprintf("%d sandboxes with %d NICs; model %s; VMs %s", attachments, nics, s.cfg.Model, protection)
}
