// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	vmv1 "bulkhead/proto/vm/v1"
)

// configPrefix names the configuration of a container in its sandbox's
// directory. It is kept as it was at create: a bundle may change or go afterwards,
// and must not matter any more. It is not part of the published record, since
// it holds the container's environment.
const configPrefix = "config-"

func (c *container) configFile() string {
	return filepath.Join(c.w.store.sandboxDir(c.sb.id), configPrefix+c.key+".json")
}

// config answers with the configuration a container was created with.
func (w *Worker) config(_ context.Context, req *vmv1.ConfigRequest) (*vmv1.ConfigReply, error) {
	c, err := w.find(req.Ref)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(c.configFile())
	if err != nil {
		return nil, fmt.Errorf("configuration of container %s: %w", req.Ref.Id, err)
	}
	return &vmv1.ConfigReply{Config: string(text)}, nil
}

// hooks returns the hooks of the container's configuration as JSON text, empty
// without any.
func (c *container) hooks() string {
	text, err := os.ReadFile(c.configFile())
	if err != nil {
		c.w.log.Error("hooks of a container not found", "container", c.rec.Ref.Id, "error", err)
		return ""
	}
	var config struct {
		Hooks json.RawMessage `json:"hooks"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		c.w.log.Error("hooks of a container not read", "container", c.rec.Ref.Id, "error", err)
		return ""
	}
	return string(config.Hooks)
}
