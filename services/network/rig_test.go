// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"bulkhead/bus"
	"bulkhead/bus/bustest"
	"bulkhead/bus/config"
	"bulkhead/bus/handover"
	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// deadline is for everything in these tests that is waited for. It is never
// reached unless something is broken.
const deadline = 30 * time.Second

// space is a network namespace with a process in it.
type space struct {
	t   *testing.T
	cmd *exec.Cmd
}

// newSpace makes an empty namespace, with the loopback device up.
func newSpace(t *testing.T) *space {
	t.Helper()
	// It ends with the test's process, which holds the other end of its input.
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	_, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("make a network namespace (needs root): %v", err)
	}
	s := &space{t: t, cmd: cmd}
	t.Cleanup(s.end)
	s.run("ip link set lo up")
	return s
}

// join starts another process in the namespace.
func (s *space) join() *space {
	s.t.Helper()
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(int(s.pid())), "-n", "cat")
	if _, err := cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	other := &space{t: s.t, cmd: cmd}
	s.t.Cleanup(other.end)
	// It is there when it has become the program.
	for end := time.Now().Add(deadline); ; time.Sleep(time.Millisecond) {
		name, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/comm")
		if err == nil && string(name) == "cat\n" {
			return other
		}
		if time.Now().After(end) {
			s.t.Fatalf("no process joins the namespace: %q, %v", name, err)
		}
	}
}

func (s *space) pid() int32 { return int32(s.cmd.Process.Pid) }

func (s *space) end() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// run runs commands in the namespace, one a line.
func (s *space) run(commands string) string {
	s.t.Helper()
	out, err := s.try(commands)
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", commands, err, out)
	}
	return out
}

func (s *space) try(commands string) (string, error) {
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(int(s.pid())), "-n", "sh", "-ec", commands)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// veth joins two namespaces: name is in s, peer in other.
func (s *space) veth(name string, other *space, peer string) {
	s.t.Helper()
	s.run("ip link add " + name + " type veth peer name " + peer + " netns " + strconv.Itoa(int(other.pid())))
	other.run("ip link set " + peer + " up")
}

// open opens the namespace in the test's own process.
func (s *space) open() *netspace.Namespace {
	s.t.Helper()
	ns, err := netspace.Open(s.pid(), 0)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(ns.Close)
	return ns
}

// settle waits until links that are up are so to the kernel, which gives them
// their link-local address then: it looks at a carrier when it has time.
func (s *space) settle(links ...string) {
	s.t.Helper()
	for _, name := range links {
		for end := time.Now().Add(deadline); !strings.Contains(s.run("ip -6 addr show dev "+name), "fe80"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				s.t.Fatalf("link %s does not come up", name)
			}
		}
	}
}

// state is all that the service might leave: links, filters, disciplines. What
// differs from one moment to another by itself is left out.
func (s *space) state() string {
	s.t.Helper()
	return s.run(`
ip -details -oneline link | sed -E 's/promiscuity [0-9]+ //; s/ state [A-Za-z]+//; s/ [a-z_]+_timer +[0-9.]+//g; s/,LOWER_UP|,NO-CARRIER|NO-CARRIER,|,M-DOWN//g'
ip -oneline addr | sed -E 's/ (tentative|dynamic)//g'
for d in $(ls /proc/self/net/dev_snmp6 2>/dev/null; ip -o link | cut -d: -f2 | cut -d@ -f1 | sort -u); do
  tc qdisc show dev $d 2>/dev/null | sort; tc filter show dev $d ingress 2>/dev/null; tc filter show dev $d egress 2>/dev/null
done`)
}

// rig is a service on a bus of its own, and what a vm-worker would take.
type rig struct {
	t      *testing.T
	bus    *bustest.Bus
	deps   Deps
	stop   func()
	conn   *bus.Conn // of the service
	parcel chan parcel
}

type parcel struct {
	token string
	files []*os.File
}

func newRig(t *testing.T, edit ...func(*Deps)) *rig {
	t.Helper()
	b := bustest.Start(t)
	r := &rig{t: t, bus: b, parcel: make(chan parcel, 16)}
	r.deps = Deps{RunDir: b.RunDir, Config: config.Default().Network, Log: bustest.Log(t), Version: "0.0.0"}
	for _, e := range edit {
		e(&r.deps)
	}
	r.takeHandovers()
	return r
}

// start runs the service until the test ends or stop is called.
func (r *rig) start() *rig {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d := r.deps
	d.Conn = r.bus.Dial("network")
	r.conn = d.Conn
	serving, ended := make(chan struct{}), make(chan error, 1)
	d.Serving = func() { _ = d.Conn.NATS().Flush(); close(serving) }
	go func() { ended <- Run(ctx, d) }()
	select {
	case <-serving:
	case err := <-ended:
		cancel()
		r.t.Fatalf("the service does not start: %v", err)
	case <-time.After(deadline):
		cancel()
		r.t.Fatal("the service does not start in time")
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("the service ends with %v", err)
		}
	})
	r.t.Cleanup(r.stop)
	return r
}

// takeHandovers plays the vm service's end of handover.sock.
func (r *rig) takeHandovers() {
	path := filepath.Join(r.bus.RunDir, "handover.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		r.t.Fatal(err)
	}
	done := make(chan struct{})
	r.t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			r.parcel <- take(c)
		}
	}()
}

func take(c *net.UnixConn) parcel {
	defer c.Close()
	var got parcel
	for {
		text, oob := make([]byte, handover.MaxPacket), make([]byte, unix.CmsgSpace(4*handover.MaxPerPacket))
		n, on, _, _, err := c.ReadMsgUnix(text, oob)
		if err != nil || n == 0 {
			return got
		}
		var p handover.Packet
		_ = json.Unmarshal(text[:n], &p)
		got.token = p.Token
		messages, _ := unix.ParseSocketControlMessage(oob[:on])
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			for _, fd := range fds {
				_ = unix.SetNonblock(fd, true)
				got.files = append(got.files, os.NewFile(uintptr(fd), "handed"))
			}
		}
		if p.Last {
			_, _ = c.Write([]byte(`{"ok":true}`))
			return got
		}
	}
}

// call asks the service and fails the test when it refuses.
func call[Resp any, P interface {
	*Resp
	proto.Message
}](r *rig, method string, req proto.Message) P {
	r.t.Helper()
	reply, err := ask[Resp, P](r, method, req)
	if err != nil {
		r.t.Fatalf("%s: %v", method, err)
	}
	return reply
}

func ask[Resp any, P interface {
	*Resp
	proto.Message
}](r *rig, method string, req proto.Message) (P, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c := r.bus.Conn()
	return bus.Call[Resp, P](ctx, c, c.Subject("net", method), req)
}

func (r *rig) attach(sandbox string, s *space) *netv1.Attachment {
	r.t.Helper()
	return call[netv1.AttachReply](r, "attach", &netv1.AttachRequest{Sandbox: sandbox, Namespace: &netv1.Namespace{Pid: s.pid()}}).Attachment
}

func (r *rig) detach(sandbox string) {
	r.t.Helper()
	call[netv1.DetachReply](r, "detach", &netv1.DetachRequest{Sandbox: sandbox})
}

// open gets the queues of a NIC as a vm-worker does.
func (r *rig) open(sandbox, link string) []*os.File {
	r.t.Helper()
	call[netv1.OpenReply](r, "open", &netv1.OpenRequest{Sandbox: sandbox, Link: link, Token: "t1"})
	p := <-r.parcel
	if p.token != "t1" {
		r.t.Fatalf("handed over under token %q", p.token)
	}
	r.t.Cleanup(func() {
		for _, f := range p.files {
			f.Close()
		}
	})
	return p.files
}

// packets is a raw socket on a link of a namespace.
func (s *space) packets(name string) *os.File {
	s.t.Helper()
	ns := s.open()
	fd := -1
	err := ns.Do(func() error {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0x0300)
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: link.Index})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "packets")
	s.t.Cleanup(func() { f.Close() })
	return f
}

// frame is a UDP datagram with a text in an Ethernet frame.
func frame(toMAC, fromMAC, fromIP, toIP, text string) []byte {
	dst, _ := net.ParseMAC(toMAC)
	src, _ := net.ParseMAC(fromMAC)
	f := append(append(append([]byte{}, dst...), src...), 0x08, 0x00)
	ip := make([]byte, 28)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(text)))
	copy(ip[12:], net.ParseIP(fromIP).To4())
	copy(ip[16:], net.ParseIP(toIP).To4())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(ip[20:], 4000)
	binary.BigEndian.PutUint16(ip[22:], 4001)
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(text)))
	return append(append(f, ip...), text...)
}

// pass sends a frame until it comes: a device whose carrier has just come drops
// what is sent by it until the kernel has looked.
func pass(t *testing.T, from, to *os.File, frame []byte) {
	t.Helper()
	text := frame[len(frame)-12:]
	end := time.Now().Add(deadline)
	for buf := make([]byte, 70000); time.Now().Before(end); {
		if _, err := from.Write(frame); err != nil {
			t.Fatal(err)
		}
		_ = to.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		for {
			n, err := to.Read(buf)
			if err != nil {
				break
			}
			if bytes.HasSuffix(buf[:n], text) {
				return
			}
		}
	}
	t.Fatalf("a frame that ends with %q does not come", text)
}

// withHeader puts an empty virtio-net header before a frame, as the tap wants.
func withHeader(f []byte) []byte { return append(make([]byte, 10), f...) }

// unlike tells the lines in which two states differ.
func unlike(before, after string) string {
	var out strings.Builder
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, l := range a {
		if !slices.Contains(b, l) {
			out.WriteString("\nbefore: " + l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out.WriteString("\nafter:  " + l)
		}
	}
	return out.String()
}
