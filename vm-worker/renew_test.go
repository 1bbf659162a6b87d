// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker_test

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bulkhead/bus/config"
	busv1 "bulkhead/proto/bus/v1"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor/fake"
)

// newShy is a host with a pool whose guests cannot rehearse while shy is set, and that soon tries to make better templates.
func newShy(t *testing.T, edits ...func(*templating)) (h *host, shy *atomic.Bool) {
	t.Helper()
	shy = &atomic.Bool{}
	shy.Store(true)
	h = newBus(t, func(c *config.VM) { c.Templates, c.Pool = true, 1 })
	h.driver = &observed{started: make(chan string, 1024), Driver: fake.New(fake.Options{RehearsalError: func() error {
		if shy.Load() {
			return errors.New("it has stage fright")
		}
		return nil
	}})}
	h.stock = &templating{observed: h.driver, parts: "first"}
	for _, e := range edits {
		e(h.stock)
	}
	h.retry = 20 * time.Millisecond
	h.serve()
	return h, shy
}

// templateEvent tells whether an event is one of a template's, and its pause.
func templateEvent(ev *busv1.Event, name string) (retry time.Duration, ok bool) {
	if ev.Kind != "template" || ev.Id != "plain" || ev.Event != name {
		return 0, false
	}
	retry, err := time.ParseDuration(ev.Attributes["retry_in"])
	return retry, err == nil || ev.Attributes["retry_in"] == ""
}

// awaitPauses waits for three events of that name, whose pauses are each longer than the one before.
func (h *host) awaitPauses(name, text string) {
	h.t.Helper()
	var last time.Duration
	told := 0
	h.awaitThat(name+" of a template, three times", func(ev *busv1.Event) bool {
		retry, ok := templateEvent(ev, name)
		if !ok {
			return false
		}
		if told++; retry < last || !strings.Contains(ev.Attributes["error"], text) {
			h.t.Errorf("after a pause of %s there is %v", last, ev)
		}
		last = retry
		return told == 3
	})
}

func TestATemplateWithoutARehearsalIsToldAndABetterOneMadeLater(t *testing.T) {
	h, shy := newShy(t)
	worn := func(p *vmv1.PoolReply) bool {
		return full(p) && templateReady(p) && strings.Contains(p.Templates[0].Worn, "stage fright") && p.Templates[0].Again.IsValid()
	}
	pooled := h.awaitPool("told that its template has not rehearsed", worn).Sandboxes[0]
	ev := h.awaitThat("made of a template that has not rehearsed", func(ev *busv1.Event) bool { _, ok := templateEvent(ev, "made"); return ok })
	if !strings.Contains(ev.Attributes["worn"], "stage fright") || ev.Attributes["retry_in"] == "" {
		t.Errorf("the event is %v", ev)
	}
	h.awaitPauses("kept", "stage fright")
	if p := h.pool(); !worn(p) || p.Sandboxes[0].Id != pooled.Id {
		t.Errorf("while no better one can be made, the pool is %v", p)
	}
	shy.Store(false)
	h.awaitPool("a better template", func(p *vmv1.PoolReply) bool {
		return templateReady(p) && p.Templates[0].Worn == "" && p.Templates[0].Again == nil
	})
	h.awaitThat("made of a template that has rehearsed", func(ev *busv1.Event) bool {
		_, ok := templateEvent(ev, "made")
		return ok && ev.Attributes["worn"] == ""
	})
	h.run("c1", "sleep")
	if s := h.sandbox(); s.Id != pooled.Id || s.Origin != "pool" {
		t.Errorf("the VM of the pool was %v, and the container's is %v", pooled, s)
	}
	h.delete("c1", true)
	h.stock.set(func() {
		if h.stock.most != 1 {
			t.Errorf("%d templates were made at a time", h.stock.most)
		}
	})
	h.stop()
	h.expectNoTrace()
}

func TestATemplateThatCannotBeMadeIsTriedAgainUnasked(t *testing.T) {
	h, shy := newShy(t, func(d *templating) { d.broken = errors.New("no template today") })
	shy.Store(false)
	h.awaitPauses("failed", "no template today")
	if p := h.pool(); len(p.Templates) != 1 || p.Templates[0].State == "failed" && !p.Templates[0].Again.IsValid() {
		t.Errorf("the pool is %v", p)
	}
	h.stock.set(func() { h.stock.broken = nil })
	h.awaitPool("its template", templateReady)
	h.stop()
	h.expectNoTrace()
}

func TestNoBetterTemplateIsMadeWhileTheHostIsShortOfMemory(t *testing.T) {
	h, shy := newShy(t)
	h.awaitPool("filled", full)
	made := func() (n int) { h.stock.set(func() { n = h.stock.made }); return n }
	waits := func(percent string) {
		t.Helper()
		text := "some avg10=" + percent + ".00 avg60=0.00 avg300=0.00 total=0\n"
		// Whole or not at all: it is read at any time.
		if err := errors.Join(os.WriteFile(h.pressure+".new", []byte(text), 0o600), os.Rename(h.pressure+".new", h.pressure)); err != nil {
			t.Fatal(err)
		}
		h.run("c"+percent, "sleep") // after which what is missing is looked for
		h.awaitPool("met the shortage", func(p *vmv1.PoolReply) bool { return strings.Contains(p.Waiting, percent+" %") })
	}
	waits("50") // a template may have been begun before
	before := made()
	h.awaitPool("come to the time for another template", func(p *vmv1.PoolReply) bool { return time.Now().After(p.Templates[0].Again.AsTime()) })
	waits("60")
	waits("70") // all that followed the former has been done
	if now := made(); now != before {
		t.Errorf("while memory is short, %d templates were made", now-before)
	}
	shy.Store(false)
	if err := os.Remove(h.pressure); err != nil {
		t.Fatal(err)
	}
	h.run("c0", "sleep")
	h.awaitPool("a better template", func(p *vmv1.PoolReply) bool { return templateReady(p) && p.Templates[0].Worn == "" })
	for _, id := range []string{"c50", "c60", "c70", "c0"} {
		h.delete(id, true)
	}
	h.stop()
	h.expectNoTrace()
}
