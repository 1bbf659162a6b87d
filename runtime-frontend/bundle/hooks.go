// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"errors"
	"fmt"
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// HookNames are the kinds of hook that are run, in the order of their running.
func HookNames() []string {
	var names []string
	for _, name := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		if Carried("hooks." + name) {
			names = append(names, name)
		}
	}
	return names
}

// checkHooks holds each hook against runtime-spec, config.md#posix-platform-hooks.
func checkHooks(hooks *specs.Hooks) error {
	if hooks == nil {
		return nil
	}
	var errs []error
	for _, group := range []struct {
		name  string
		hooks []specs.Hook
	}{
		{"hooks.prestart", hooks.Prestart},
		{"hooks.createRuntime", hooks.CreateRuntime},
		{"hooks.createContainer", hooks.CreateContainer},
		{"hooks.startContainer", hooks.StartContainer},
		{"hooks.poststart", hooks.Poststart},
		{"hooks.poststop", hooks.Poststop},
	} {
		for i, hook := range group.hooks {
			name := fmt.Sprintf("%s[%d]", group.name, i)
			if !path.IsAbs(hook.Path) {
				errs = append(errs, refuse(name+".path", fmt.Sprintf("%q is not an absolute path", hook.Path)))
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				errs = append(errs, refuse(name+".timeout", fmt.Sprintf("%d is not above zero", *hook.Timeout)))
			}
		}
	}
	return errors.Join(errs...)
}
