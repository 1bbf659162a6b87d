// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// store keeps records: in the VM's directory, which is the truth, and in the KV
// buckets, which is what is read. The copy may fail while the bus is away; that
// is logged and put right when the bus is back (publish.go).
type store struct {
	dir        string // <run_dir>/vm
	containers *bus.Bucket[*vmv1.Container]
	sandboxes  *bus.Bucket[*vmv1.Sandbox]
	log        hclog.Logger
	behind     chan struct{} // capacity 1: the buckets miss something
}

const (
	sandboxFile     = "sandbox.json"
	containerPrefix = "container-"
)

var recordJSON = protojson.MarshalOptions{Multiline: true}

func (s *store) sandboxDir(id string) string { return filepath.Join(s.dir, id) }

func (s *store) containerFile(rec *vmv1.Container) string {
	return filepath.Join(s.sandboxDir(rec.Sandbox), containerPrefix+rec.Key+".json")
}

// saveContainer records a container. The error is about the file alone.
func (s *store) saveContainer(ctx context.Context, rec *vmv1.Container) error {
	if err := s.writeContainer(rec); err != nil {
		return err
	}
	ctx, cancel := publishContext(ctx)
	defer cancel()
	if _, err := s.containers.Put(ctx, rec.Key, rec); err != nil {
		s.log.Warn("container record not published", "container", rec.Ref.GetId(), "error", err)
		s.fellBehind()
	}
	return nil
}

// writeContainer records a container without publishing it.
func (s *store) writeContainer(rec *vmv1.Container) error {
	return writeRecord(s.containerFile(rec), rec)
}

// saveSandbox records a sandbox. The error is about the file alone.
func (s *store) saveSandbox(ctx context.Context, rec *vmv1.Sandbox) error {
	if err := writeRecord(filepath.Join(s.sandboxDir(rec.Id), sandboxFile), rec); err != nil {
		return err
	}
	ctx, cancel := publishContext(ctx)
	defer cancel()
	if _, err := s.sandboxes.Put(ctx, rec.Id, rec); err != nil {
		s.log.Warn("sandbox record not published", "sandbox", rec.Id, "error", err)
		s.fellBehind()
	}
	return nil
}

func (s *store) removeContainer(ctx context.Context, rec *vmv1.Container) error {
	ctx, cancel := publishContext(ctx)
	defer cancel()
	if err := s.containers.Delete(ctx, rec.Key); err != nil {
		s.log.Warn("container record not withdrawn", "container", rec.Ref.GetId(), "error", err)
		s.fellBehind()
	}
	var errs []error
	for _, f := range []string{
		filepath.Join(s.sandboxDir(rec.Sandbox), configPrefix+rec.Key+".json"),
		filepath.Join(s.sandboxDir(rec.Sandbox), cgroupPrefix+rec.Key+".json"),
		s.containerFile(rec), // last: while it is there, the rest is found again
	} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove record of container %s: %w", rec.Ref.GetId(), err))
		}
	}
	return errors.Join(errs...)
}

// removeSandbox removes the record and the whole directory of a sandbox.
func (s *store) removeSandbox(ctx context.Context, id string) error {
	ctx, cancel := publishContext(ctx)
	defer cancel()
	if err := s.sandboxes.Delete(ctx, id); err != nil {
		s.log.Warn("sandbox record not withdrawn", "sandbox", id, "error", err)
		s.fellBehind()
	}
	if err := os.RemoveAll(s.sandboxDir(id)); err != nil {
		return fmt.Errorf("remove directory of sandbox %s: %w", id, err)
	}
	return nil
}

// stored is what a sandbox's directory says.
type stored struct {
	sandbox    *vmv1.Sandbox
	containers []*vmv1.Container
}

// load reads every directory. One that cannot be read is reported beside the
// rest: a torn record of one VM must not hide the others.
func (s *store) load() (map[string]*stored, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the directory of sandboxes: %w", err)
	}
	found := map[string]*stored{}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		st, err := s.loadOne(e.Name())
		if err != nil {
			errs = append(errs, err)
		}
		found[e.Name()] = st
	}
	return found, errors.Join(errs...)
}

func (s *store) loadOne(id string) (*stored, error) {
	st := &stored{sandbox: &vmv1.Sandbox{Id: id}}
	dir := s.sandboxDir(id)
	err := readRecord(filepath.Join(dir, sandboxFile), st.sandbox)
	st.sandbox.Id = id
	files, globErr := filepath.Glob(filepath.Join(dir, containerPrefix+"*.json"))
	errs := []error{err, globErr}
	for _, f := range files {
		c := &vmv1.Container{}
		if err := readRecord(f, c); err != nil {
			errs = append(errs, err)
			continue
		}
		if name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), containerPrefix), ".json"); c.Key != name || c.Sandbox != id {
			errs = append(errs, fmt.Errorf("record %s speaks of another container", f))
			continue
		}
		st.containers = append(st.containers, c)
	}
	return st, errors.Join(errs...)
}

// writeRecord writes whole or not at all. Nothing is synced: records live under
// /run and end with the VMs they describe.
func writeRecord(path string, m proto.Message) error {
	raw, err := recordJSON.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func readRecord(path string, m proto.Message) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, m); err != nil {
		return fmt.Errorf("read record %s: %w", path, err)
	}
	return nil
}
