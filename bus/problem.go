// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	busv1 "bulkhead/proto/bus/v1"
)

const (
	maxHeaderText = 512 // bytes of a sentence in the error header
	maxGuestText  = 512 // bytes of a sentence from a guest
	maxGuestMeta  = 16  // metadata entries taken from a guest
)

// toProblem is the one place where a Go error becomes what the wire carries.
func toProblem(err error) *busv1.Problem {
	var e *Error
	if !errors.As(err, &e) {
		e = Errorf(ReasonOf(err), "%w", err)
	}
	code, ok := reasonCodes[e.Reason]
	if !ok {
		code = reasonCodes[Internal]
	}
	// The outer text may say more than the Error inside it: "start c1: no such vm".
	return &busv1.Problem{
		Code: int32(code), Reason: string(e.Reason), Message: strings.ToValidUTF8(err.Error(), "\uFFFD"),
		Retryable: e.Retryable, Metadata: e.Metadata,
	}
}

// fromProblem is the other direction. Reasons that this build does not know
// are Internal.
func fromProblem(p *busv1.Problem) *Error {
	e := &Error{Reason: Reason(p.GetReason()), Message: p.GetMessage(), Retryable: p.GetRetryable(), Metadata: p.GetMetadata()}
	if _, ok := reasonCodes[e.Reason]; !ok {
		e.Reason = Internal
	}
	return e
}

// guestProblem is fromProblem for what a guest said: bounded, printable, and
// marked as the guest's word.
func guestProblem(sandbox string, p *busv1.Problem) *Error {
	e := fromProblem(p)
	e.Message = "guest " + sandbox + ": " + cleanText(e.Message, maxGuestText)
	meta := map[string]string{}
	for k, v := range e.Metadata {
		if len(meta) == maxGuestMeta {
			break
		}
		meta[cleanText(k, 64)] = cleanText(v, maxGuestText)
	}
	meta["from"] = "guest"
	e.Metadata = meta
	return e
}

func (names errorHeaders) set(h nats.Header, p *busv1.Problem) {
	h.Set(names.code, strconv.Itoa(int(p.GetCode())))
	h.Set(names.text, p.GetReason()+": "+cleanText(p.GetMessage(), maxHeaderText))
}

// cleanText makes a sentence safe for a header, a terminal or a log: one line,
// printable, valid UTF-8, at most limit bytes.
func cleanText(s string, limit int) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "?") {
		if unicode.IsSpace(r) {
			r = ' '
		} else if !unicode.IsPrint(r) {
			r = '?'
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			return strings.TrimSpace(b.String()) + "…"
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}
