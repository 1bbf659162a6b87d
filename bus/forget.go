// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// forgetAgain takes away what a kill of the server has brought back of records that went. NATS (2.15) writes down that a
// revision was removed, but not of one that went because there may be only so many of a record: it reckons those anew
// when it reads its files after a kill. By then the newer ones are removed, so it has the oldest instead. They lie
// behind the marker that tells that the record went, and would be the record when that marker is forgotten.
func forgetAgain(ctx context.Context, c *Conn, bucket string) error {
	stream, err := c.js.Stream(ctx, "KV_"+bucket)
	if err != nil {
		return fmt.Errorf("open the stream of bucket %s: %w", bucket, err)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return fmt.Errorf("read the stream of bucket %s: %w", bucket, err)
	}
	for subject, revisions := range info.State.Subjects {
		if revisions < 2 {
			continue
		}
		last, err := stream.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // it was forgotten meanwhile
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", subject, err)
		}
		if last.Header.Get("KV-Operation") == "" && last.Header.Get(jetstream.MarkerReasonHeader) == "" {
			continue // the record is there
		}
		if err := stream.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeKeep(1)); err != nil {
			return fmt.Errorf("forget what was before the end of %s: %w", subject, err)
		}
	}
	return nil
}
