// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

// The subjects of docs/architecture.md. Every variable part passes through
// Token, so no id can widen a subject.

// Subject is <host>.<service>.<method>, where a service answers requests.
func Subject(host, service, method string) string {
	return Token(host) + "." + Token(service) + "." + Token(method)
}

// AgentSubject is agent.<sandbox>.rpc.<method>, where a guest answers the host.
func AgentSubject(sandbox, method string) string {
	return "agent." + Token(sandbox) + ".rpc." + Token(method)
}

// AgentEventSubject is agent.<sandbox>.ev.<topic>, where a guest speaks by
// itself. A topic of ">" subscribes to all of one guest.
func AgentEventSubject(sandbox, topic string) string {
	if topic != ">" {
		topic = Token(topic)
	}
	return "agent." + Token(sandbox) + ".ev." + topic
}

// EventSubject is ev.<host>.<kind>.<id>.<event>. An empty part is the wildcard
// "*", for subscribers.
func EventSubject(host, kind, id, event string) string {
	subject := "ev"
	for _, part := range []string{host, kind, id, event} {
		if part == "" {
			subject += ".*"
		} else {
			subject += "." + Token(part)
		}
	}
	return subject
}

// InboxPrefix is the prefix of a guest's inboxes.
func InboxPrefix(sandbox string) string { return inboxRoot + Token(sandbox) }

// inboxRoot begins every subject that replies may be sent to.
const inboxRoot = "_INBOX."

// The message headers of docs/architecture.md.
const (
	HeaderContentType = "Content-Type"
	HeaderAccept      = "Accept"
	HeaderOperation   = "Bulkhead-Operation-Id"
	HeaderDeadline    = "Bulkhead-Deadline"
	HeaderTimeout     = "Bulkhead-Timeout-Ms"
	// An agent's failure, by its code and as a sentence.
	HeaderAgentErrorCode = "Bulkhead-Error-Code"
	HeaderAgentError     = "Bulkhead-Error"
)

// A service reports a failure in the headers of the NATS micro protocol. A guest
// may send no Nats-* header at all, so its agent has its own.
var (
	serviceErrorHeaders = errorHeaders{code: "Nats-Service-Error-Code", text: "Nats-Service-Error"}
	agentErrorHeaders   = errorHeaders{code: HeaderAgentErrorCode, text: HeaderAgentError}
)

type errorHeaders struct{ code, text string }
