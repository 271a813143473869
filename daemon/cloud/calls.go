package cloud

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Limits of ENS that no call tells.
const (
	// MostInterfaces is the number of interfaces of an instance. Whether the primary interface counts is not
	// documented: it is counted here.
	MostInterfaces = 10
	// MostAddresses is the number of secondary addresses of an interface.
	MostAddresses = 25
)

// Status of an instance or an interface, in the cloud's words.
const (
	Running  = "Running"
	Starting = "Starting"
	Stopping = "Stopping"
	Stopped  = "Stopped"

	Available = "Available"
	Attaching = "Attaching"
	InUse     = "InUse"
)

// Instance is a machine.
type Instance struct {
	ID, Status, Region string
	VSwitch            string
	Groups             []string // security groups
	Addresses          []GatewayAddress
}

// GatewayAddress is a private address of an instance, and the gateway of its subnet.
type GatewayAddress struct {
	Address, Gateway netip.Addr
}

// Interface is an elastic network interface.
type Interface struct {
	ID, Name, MAC string
	Instance      string // "": none
	Status        string
	Primary       bool
	VSwitch       string
	Groups        []string
	Address       netip.Addr   // its own
	Addresses     []netip.Addr // secondary, sorted
}

// VSwitch is a subnet.
type VSwitch struct {
	ID   string
	CIDR netip.Prefix
	Free int // addresses
}

// Rule is a rule of a security group.
type Rule struct {
	Direction  string // ingress, egress
	IpProtocol string
	PortRange  string // "-1/-1": all
	// SourceCidrIp is the other side of an ingress rule, DestCidrIp of an egress rule.
	SourceCidrIp, DestCidrIp string
	Policy                   string // Accept, Drop
}

// Instances returns the instances of these IDs that exist. No ID gives no instance.
func (c *Client) Instances(ctx context.Context, ids ...string) (out []Instance, err error) {
	for part := range slices.Chunk(ids, mostInPage) {
		err := c.pages(ctx, "DescribeInstances", parameters{"InstanceIds": array(part)}, func(ctx context.Context, p parameters) (int, int, error) {
			var a struct {
				TotalCount int
				Instances  struct {
					Instance []struct {
						InstanceId, Status, EnsRegionId string
						NetworkAttributes               struct{ VSwitchId string }
						SecurityGroupIds                struct{ SecurityGroupId []string }
						PrivateIpAddresses              struct {
							PrivateIpAddress []struct{ Ip, GateWay string }
						}
					}
				}
			}
			err := c.call(ctx, "DescribeInstances", p, &a)
			for _, i := range a.Instances.Instance {
				one := Instance{ID: i.InstanceId, Status: i.Status, Region: i.EnsRegionId, VSwitch: i.NetworkAttributes.VSwitchId, Groups: i.SecurityGroupIds.SecurityGroupId}
				for _, p := range i.PrivateIpAddresses.PrivateIpAddress {
					if ip := address(p.Ip); ip.IsValid() {
						one.Addresses = append(one.Addresses, GatewayAddress{ip, address(p.GateWay)})
					}
				}
				out = append(out, one)
			}
			return len(a.Instances.Instance), a.TotalCount, err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// StartInstance starts a stopped instance. The instance is Running some time after the answer.
func (c *Client) StartInstance(ctx context.Context, id string) error {
	return c.call(ctx, "StartInstance", parameters{"InstanceId": id}, nil)
}

// StopInstance shuts a running instance down as its operating system wants it. The instance is Stopped some time
// after the answer.
func (c *Client) StopInstance(ctx context.Context, id string) error {
	return c.call(ctx, "StopInstance", parameters{"InstanceId": id, "ForceStop": "false"}, nil)
}

// CreateInterface makes an interface that no instance has, and returns its ID. It is not idempotent: after an
// error, look for the name with [Client.Interfaces].
func (c *Client) CreateInterface(ctx context.Context, name, vswitch, group string) (string, error) {
	var a struct{ NetworkInterfaceIds []string }
	p := parameters{"Name": name, "VSwitchId": vswitch, "SecurityGroupIds": array([]string{group})}
	if err := c.call(ctx, "CreateNetworkInterface", p, &a); err != nil {
		return "", err
	}
	if len(a.NetworkInterfaceIds) != 1 {
		return "", &Error{Action: "CreateNetworkInterface", Kind: Unreachable, Message: fmt.Sprintf("the answer names %d interfaces", len(a.NetworkInterfaceIds))}
	}
	return a.NetworkInterfaceIds[0], nil
}

// AttachInterface gives an Available interface to a Stopped instance. The interface is InUse some time after the
// answer.
func (c *Client) AttachInterface(ctx context.Context, id, instance string) error {
	return c.call(ctx, "AttachNetworkInterface", parameters{"NetworkInterfaceId": id, "InstanceId": instance}, nil)
}

// Filter says which interfaces are listed. Empty fields do not count.
type Filter struct {
	Instance, VSwitch, Name string
}

// Interfaces lists interfaces. A list whose pages do not hold as many interfaces as the cloud counted is an error.
func (c *Client) Interfaces(ctx context.Context, f Filter) (out []Interface, err error) {
	p := parameters{}
	for name, value := range map[string]string{"InstanceId": f.Instance, "VSwitchId": f.VSwitch, "NetworkInterfaceName": f.Name} {
		if value != "" {
			p[name] = value
		}
	}
	err = c.pages(ctx, "DescribeNetworkInterfaces", p, func(ctx context.Context, p parameters) (int, int, error) {
		var a interfacePage
		err := c.call(ctx, "DescribeNetworkInterfaces", p, &a)
		for _, n := range a.NetworkInterfaceSets.NetworkInterfaceSet {
			out = append(out, n.read())
		}
		return len(a.NetworkInterfaceSets.NetworkInterfaceSet), a.TotalCount, err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b Interface) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

type interfacePage struct {
	TotalCount           int
	NetworkInterfaceSets struct{ NetworkInterfaceSet []interfaceAnswer }
}

type interfaceAnswer struct {
	NetworkInterfaceId, NetworkInterfaceName, MacAddress, InstanceId, Status, Type, VSwitchId, PrimaryIp string

	SecurityGroupIds struct{ SecurityGroup []string }
	PrivateIpSets    struct {
		PrivateIpSet []struct {
			PrivateIpAddress string
			Primary          bool
		}
	}
}

func (a interfaceAnswer) read() Interface {
	n := Interface{ID: a.NetworkInterfaceId, Name: a.NetworkInterfaceName, MAC: strings.ToLower(a.MacAddress), Instance: a.InstanceId, Status: a.Status,
		Primary: strings.EqualFold(a.Type, "Primary"), VSwitch: a.VSwitchId, Groups: a.SecurityGroupIds.SecurityGroup, Address: address(a.PrimaryIp)}
	// The documents write both InUse and In_use.
	for _, s := range []string{Available, Attaching, InUse} {
		if strings.EqualFold(strings.ReplaceAll(a.Status, "_", ""), s) {
			n.Status = s
		}
	}
	for _, p := range a.PrivateIpSets.PrivateIpSet {
		switch ip := address(p.PrivateIpAddress); {
		case !ip.IsValid():
		case p.Primary:
			n.Address = ip
		case ip != n.Address:
			n.Addresses = append(n.Addresses, ip)
		}
	}
	slices.SortFunc(n.Addresses, netip.Addr.Compare)
	return n
}

// AssignAddress has the cloud choose another address for an interface. It returns no address: after an error the
// address may be assigned all the same, so the next list is what counts.
func (c *Client) AssignAddress(ctx context.Context, id string) error {
	return c.call(ctx, "AssignPrivateIpAddresses", parameters{"NetworkInterfaceId": id}, nil)
}

// UnassignAddress takes a secondary address from an interface.
func (c *Client) UnassignAddress(ctx context.Context, id string, a netip.Addr) error {
	return c.call(ctx, "UnassignPrivateIpAddresses", parameters{"NetworkInterfaceId": id, "PrivateIpAddress.1": a.String()}, nil)
}

// VSwitches returns the subnets of these IDs that exist.
func (c *Client) VSwitches(ctx context.Context, ids ...string) (out []VSwitch, err error) {
	for part := range slices.Chunk(ids, mostInPage) {
		p := parameters{}
		for i, id := range part {
			p["VSwitchIds."+strconv.Itoa(i+1)] = id
		}
		err := c.pages(ctx, "DescribeVSwitches", p, func(ctx context.Context, p parameters) (int, int, error) {
			var a struct {
				TotalCount int
				VSwitches  struct {
					VSwitch []struct {
						VSwitchId, CidrBlock string
						FreeIpCount          int
					}
				}
			}
			err := c.call(ctx, "DescribeVSwitches", p, &a)
			for _, v := range a.VSwitches.VSwitch {
				cidr, _ := netip.ParsePrefix(v.CidrBlock) // a subnet that cannot be read is invalid, and the caller says so
				out = append(out, VSwitch{v.VSwitchId, cidr.Masked(), v.FreeIpCount})
			}
			return len(a.VSwitches.VSwitch), a.TotalCount, err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// GroupRules returns the rules of a security group.
func (c *Client) GroupRules(ctx context.Context, id string) ([]Rule, error) {
	var a struct {
		Permissions struct{ Permission []Rule }
	}
	if err := c.call(ctx, "DescribeSecurityGroupAttribute", parameters{"SecurityGroupId": id}, &a); err != nil {
		return nil, err
	}
	return a.Permissions.Permission, nil
}

// pages calls read for each page until as many entries were read as the cloud counts.
func (c *Client) pages(ctx context.Context, action string, p parameters, read func(context.Context, parameters) (n, total int, err error)) error {
	p["PageSize"] = strconv.Itoa(mostInPage)
	seen, total := 0, 0
	for number := 1; number <= mostPages; number++ {
		p["PageNumber"] = strconv.Itoa(number)
		n, of, err := read(ctx, p)
		if err != nil {
			return err
		}
		changed := number > 1 && of != total
		seen, total = seen+n, of
		if seen == total && !changed {
			return nil
		}
		if n == 0 || seen > total || changed {
			break
		}
	}
	return &Error{Action: action, Kind: Unreachable, Message: fmt.Sprintf("the pages have %d entries of %d: the list changed meanwhile", seen, total)}
}

// array is the text of a JSON array, which is how the API takes some lists.
func array(ids []string) string {
	text, _ := json.Marshal(ids) // strings can always be written
	return string(text)
}

// address reads an address; the zero Addr stands for a text that is none.
func address(text string) netip.Addr {
	a, _ := netip.ParseAddr(text)
	return a
}
