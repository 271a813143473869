package main

import (
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// library returns the CNI library as runtimes use it, with the check's own cache.
func (t *T) library() (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	list, err := libcni.NetworkConfFromBytes(t.net.conflist())
	t.OK(err, "read the configuration")
	return libcni.NewCNIConfigWithCacheDir(t.path(), filepath.Join(t.dir, "cache"), nil), list
}

func (p *pod) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: p.id, NetNS: p.netns, IfName: p.ifName, Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "p"}}}
}

func (t *T) withLibrary(what string, f func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error) {
	c, list := t.library()
	t.OK(t.host.Do(func() error { return f(c, list) }), what)
}

// libraryAdd runs ADD through the library and has the library decode the result.
func (t *T) libraryAdd(p *pod) {
	t.withLibrary("ADD", func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		r, err := c.AddNetworkList(t.ctx, list, p.runtimeConf())
		if err == nil {
			_, err = current.NewResultFromResult(r)
		}
		return err
	})
	t.Cleanup(func() { t.tryDel(p) })
}

// libraryCheck runs CHECK through the library, unless the version does not have it.
func (t *T) libraryCheck(p *pod) {
	t.withLibrary("CHECK", func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		if before(list.CNIVersion, sinceCheck) {
			return nil
		}
		return c.CheckNetworkList(t.ctx, list, p.runtimeConf())
	})
}

func (t *T) libraryDel(p *pod, what string) {
	t.withLibrary(what, func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
		return c.DelNetworkList(t.ctx, list, p.runtimeConf())
	})
}

func libcniChecks() []check {
	return []check{
		{id: "libcni.life", level: must, section: "3", asks: "ADD, CHECK and DEL work through libcni", each: true, run: func(t *T) {
			p := t.pod()
			t.libraryAdd(p)
			t.libraryCheck(p)
			t.libraryDel(p, "DEL")
			t.libraryDel(p, "DEL without cache")
			t.noInterface(p)
		}},
		{id: "libcni.validate", level: must, section: "3", asks: "libcni accepts the list", run: func(t *T) {
			t.withLibrary("validate", func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
				_, err := c.ValidateNetworkList(t.ctx, list)
				return err
			})
		}},
		{id: "libcni.version", level: must, section: "2", asks: "libcni's version probe works", run: func(t *T) {
			t.withLibrary("version", func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
				for _, kind := range t.net.types() {
					if _, err := c.GetVersionInfo(t.ctx, kind); err != nil {
						return err
					}
				}
				return nil
			})
		}},
		{id: "libcni.status", level: must, section: "2", asks: "STATUS works through libcni", since: sinceGC, run: func(t *T) {
			t.withLibrary("STATUS", func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
				return c.GetStatusNetworkList(t.ctx, list)
			})
		}},
		{id: "libcni.gc", level: must, section: "2", asks: "GC through libcni keeps the valid attachments and removes the others", since: sinceGC, run: func(t *T) {
			keep, drop := t.pod(), t.pod()
			for _, p := range []*pod{keep, drop} {
				t.libraryAdd(p)
			}
			t.withLibrary("GC", func(c *libcni.CNIConfig, list *libcni.NetworkConfigList) error {
				return c.GCNetworkList(t.ctx, list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: keep.id, IfName: keep.ifName}}})
			})
			if keep.link("eth0") == nil {
				t.Errorf("the valid one is gone")
			}
			if drop.link("eth0") != nil {
				t.Errorf("the other is still there")
			}
			t.libraryCheck(keep)
		}},
		{id: "libcni.upgrade", level: robust, section: "3", asks: "after the list's cniVersion was raised, CHECK and DEL of older attachments work through libcni's cache", run: func(t *T) {
			if t.net.version != "1.1.0" {
				t.Skipf("needs 1.1.0")
			}
			p := t.pod()
			t.net.version = "1.0.0"
			t.libraryAdd(p)
			t.net.version = "1.1.0"
			t.libraryCheck(p)
			t.libraryDel(p, "DEL")
		}},
	}
}
