package cloud

import (
	"cmp"
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
	Type, Zone         string // of ECS
	VSwitch            string
	Groups             []string         // security groups
	Addresses          []GatewayAddress // of ENS
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
	Free int    // addresses
	Zone string // of ECS
}

// Limits are those of an instance type of ECS.
type Limits struct {
	Interfaces int // secondary interfaces of an instance
	Addresses  int // secondary addresses of an interface
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

// Group is a security group.
type Group struct {
	Rules []Rule
	// Inside: the members of the group reach each other without a rule (ECS).
	Inside bool
}

type instanceAnswer struct {
	InstanceId, Status, InstanceType, ZoneId, EnsRegionId, RegionId string

	NetworkAttributes  struct{ VSwitchId string } // of ENS
	VpcAttributes      struct{ VSwitchId string } // of ECS
	SecurityGroupIds   struct{ SecurityGroupId []string }
	PrivateIpAddresses struct {
		PrivateIpAddress []struct{ Ip, GateWay string }
	}
}

func (a instanceAnswer) read() Instance {
	i := Instance{ID: a.InstanceId, Status: a.Status, Type: a.InstanceType, Zone: a.ZoneId, Region: cmp.Or(a.EnsRegionId, a.RegionId),
		VSwitch: cmp.Or(a.NetworkAttributes.VSwitchId, a.VpcAttributes.VSwitchId), Groups: a.SecurityGroupIds.SecurityGroupId}
	for _, p := range a.PrivateIpAddresses.PrivateIpAddress {
		if ip := address(p.Ip); ip.IsValid() {
			i.Addresses = append(i.Addresses, GatewayAddress{ip, address(p.GateWay)})
		}
	}
	return i
}

// Instances returns the instances of these IDs that exist. No ID gives no instance.
func (c *Client) Instances(ctx context.Context, ids ...string) (out []Instance, err error) {
	for part := range slices.Chunk(ids, mostInPage) {
		err := c.list(ctx, "DescribeInstances", parameters{"InstanceIds": array(part)}, func(a answer) int {
			for _, i := range a.Instances.Instance {
				out = append(out, i.read())
			}
			return len(a.Instances.Instance)
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Limits returns the limits of an instance type of ECS. An unknown type is an error.
func (c *Client) Limits(ctx context.Context, kind string) (Limits, error) {
	var a struct {
		InstanceTypes struct {
			InstanceType []struct {
				InstanceTypeId                           string
				EniQuantity, EniPrivateIpAddressQuantity int
			}
		}
	}
	if err := c.call(ctx, "DescribeInstanceTypes", parameters{"InstanceTypes.1": kind}, &a); err != nil {
		return Limits{}, err
	}
	for _, t := range a.InstanceTypes.InstanceType {
		if t.InstanceTypeId == kind { // the primary interface counts, and so does an interface's own address
			return Limits{Interfaces: max(t.EniQuantity-1, 0), Addresses: max(t.EniPrivateIpAddressQuantity-1, 0)}, nil
		}
	}
	return Limits{}, &Error{Action: "DescribeInstanceTypes", Kind: NotFound, Message: fmt.Sprintf("no instance type %q in this region", kind), service: c.options.Service}
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

// NewInterface says how a new interface is made. Token is of ECS: a second call with it makes no second interface.
type NewInterface struct {
	Name, VSwitch string
	Groups        []string
	Token         string
}

// CreateInterface makes an interface that no instance has, and returns its ID. For ENS it is not idempotent: after an
// error, look for the name with [Client.Interfaces].
func (c *Client) CreateInterface(ctx context.Context, n NewInterface) (string, error) {
	var a struct {
		NetworkInterfaceId  string   // of ECS
		NetworkInterfaceIds []string // of ENS
	}
	p := parameters{"VSwitchId": n.VSwitch}
	if c.options.Service == ECS {
		p["NetworkInterfaceName"], p["ClientToken"] = n.Name, n.Token
		p.list("SecurityGroupIds", n.Groups)
	} else {
		p["Name"], p["SecurityGroupIds"] = n.Name, array(n.Groups)
	}
	if err := c.call(ctx, "CreateNetworkInterface", p, &a); err != nil {
		return "", err
	}
	if a.NetworkInterfaceId != "" {
		a.NetworkInterfaceIds = append(a.NetworkInterfaceIds, a.NetworkInterfaceId)
	}
	if len(a.NetworkInterfaceIds) != 1 {
		return "", &Error{Action: "CreateNetworkInterface", Kind: Unreachable, Message: fmt.Sprintf("the answer names %d interfaces", len(a.NetworkInterfaceIds))}
	}
	return a.NetworkInterfaceIds[0], nil
}

// AttachInterface gives an Available interface to an instance, which is Stopped, or of ECS and Running. The interface is
// InUse some time after the answer.
func (c *Client) AttachInterface(ctx context.Context, id, instance string) error {
	return c.call(ctx, "AttachNetworkInterface", parameters{"NetworkInterfaceId": id, "InstanceId": instance}, nil)
}

// Filter says which interfaces are listed. Empty fields do not count.
type Filter struct {
	Instance, VSwitch, Name, Status string
}

// Interfaces lists interfaces. A list whose pages do not hold as many interfaces as the cloud counted is an error.
func (c *Client) Interfaces(ctx context.Context, f Filter) (out []Interface, err error) {
	p := parameters{}
	for name, value := range map[string]string{"InstanceId": f.Instance, "VSwitchId": f.VSwitch, "NetworkInterfaceName": f.Name, "Status": f.Status} {
		if value != "" {
			p[name] = value
		}
	}
	err = c.list(ctx, "DescribeNetworkInterfaces", p, func(a answer) int {
		for _, n := range a.NetworkInterfaceSets.NetworkInterfaceSet {
			out = append(out, n.read())
		}
		return len(a.NetworkInterfaceSets.NetworkInterfaceSet)
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b Interface) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

type interfaceAnswer struct {
	NetworkInterfaceId, NetworkInterfaceName, MacAddress, InstanceId, Status, Type, VSwitchId string

	PrimaryIp        string                                            // of ENS
	PrivateIpAddress string                                            // of ECS
	SecurityGroupIds struct{ SecurityGroup, SecurityGroupId []string } // of ENS, and of ECS
	PrivateIpSets    struct {
		PrivateIpSet []struct {
			PrivateIpAddress string
			Primary          bool
		}
	}
}

func (a interfaceAnswer) read() Interface {
	n := Interface{ID: a.NetworkInterfaceId, Name: a.NetworkInterfaceName, MAC: strings.ToLower(a.MacAddress), Instance: a.InstanceId, Status: a.Status,
		Primary: strings.EqualFold(a.Type, "Primary"), VSwitch: a.VSwitchId, Groups: append(a.SecurityGroupIds.SecurityGroup, a.SecurityGroupIds.SecurityGroupId...), Address: address(cmp.Or(a.PrimaryIp, a.PrivateIpAddress))}
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

// AssignAddresses has the cloud choose more addresses for an interface: one of ENS, and count of ECS, where a second call
// with the token assigns nothing more. It returns no address: after an error the addresses may be assigned all the same,
// so the next list is what counts.
func (c *Client) AssignAddresses(ctx context.Context, id string, count int, token string) error {
	p := parameters{"NetworkInterfaceId": id}
	if c.options.Service == ECS {
		p["SecondaryPrivateIpAddressCount"], p["ClientToken"] = strconv.Itoa(count), token
	}
	return c.call(ctx, "AssignPrivateIpAddresses", p, nil)
}

// UnassignAddress takes a secondary address from an interface.
func (c *Client) UnassignAddress(ctx context.Context, id string, a netip.Addr) error {
	return c.call(ctx, "UnassignPrivateIpAddresses", parameters{"NetworkInterfaceId": id, "PrivateIpAddress.1": a.String()}, nil)
}

// VSwitches returns the subnets of these IDs that exist.
func (c *Client) VSwitches(ctx context.Context, ids ...string) (out []VSwitch, err error) {
	most := mostInPage
	if c.options.Service == ECS {
		most = 1
	}
	for part := range slices.Chunk(ids, most) {
		p := parameters{}
		if c.options.Service == ECS {
			p["VSwitchId"] = part[0]
		} else {
			p.list("VSwitchIds", part)
		}
		err := c.pages(ctx, "DescribeVSwitches", p, func(a answer) int {
			for _, v := range a.VSwitches.VSwitch {
				cidr, _ := netip.ParsePrefix(v.CidrBlock) // a subnet that cannot be read is invalid, and the caller says so
				out = append(out, VSwitch{v.VSwitchId, cidr.Masked(), v.FreeIpCount + v.AvailableIpAddressCount, v.ZoneId})
			}
			return len(a.VSwitches.VSwitch)
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Group returns a security group.
func (c *Client) Group(ctx context.Context, id string) (Group, error) {
	var a struct {
		InnerAccessPolicy string
		Permissions       struct{ Permission []Rule }
	}
	if err := c.call(ctx, "DescribeSecurityGroupAttribute", parameters{"SecurityGroupId": id}, &a); err != nil {
		return Group{}, err
	}
	return Group{Rules: a.Permissions.Permission, Inside: strings.EqualFold(a.InnerAccessPolicy, "Accept")}, nil
}

// answer is a page of a list.
type answer struct {
	TotalCount int
	NextToken  string // of ECS
	Instances  struct{ Instance []instanceAnswer }

	NetworkInterfaceSets struct{ NetworkInterfaceSet []interfaceAnswer }
	VSwitches            struct {
		VSwitch []struct {
			VSwitchId, CidrBlock, ZoneId         string
			FreeIpCount, AvailableIpAddressCount int // of ENS, and of ECS
		}
	}
}

// list reads a list in the way of the service.
func (c *Client) list(ctx context.Context, action string, p parameters, read func(answer) (n int)) error {
	if c.options.Service == ENS {
		return c.pages(ctx, action, p, read)
	}
	p["MaxResults"] = strconv.Itoa(mostInPage)
	for range mostPages {
		var a answer
		if err := c.call(ctx, action, p, &a); err != nil {
			return err
		}
		read(a)
		if a.NextToken == "" {
			return nil
		}
		p["NextToken"] = a.NextToken
		if err := c.turn(ctx); err != nil {
			return err
		}
	}
	return &Error{Action: action, Kind: Unreachable, Message: fmt.Sprintf("the list does not end after %d pages", mostPages)}
}

// pages reads page after page until as many entries were read as the cloud counts.
func (c *Client) pages(ctx context.Context, action string, p parameters, read func(answer) (n int)) error {
	p["PageSize"] = strconv.Itoa(mostInPage)
	seen, total := 0, 0
	for number := 1; number <= mostPages; number++ {
		p["PageNumber"] = strconv.Itoa(number)
		var a answer
		if err := c.call(ctx, action, p, &a); err != nil {
			return err
		}
		n := read(a)
		changed := number > 1 && a.TotalCount != total
		seen, total = seen+n, a.TotalCount
		if seen == total && !changed {
			return nil
		}
		if n == 0 || seen > total || changed {
			break
		}
		if err := c.turn(ctx); err != nil {
			return err
		}
	}
	return &Error{Action: action, Kind: Unreachable, Message: fmt.Sprintf("the pages have %d entries of %d: the list changed meanwhile", seen, total)}
}

func (c *Client) turn(ctx context.Context) error {
	if c.options.Turn == nil {
		return nil
	}
	return c.options.Turn(ctx)
}

// list adds the parameters name.1, name.2, ...
func (p parameters) list(name string, values []string) {
	for i, v := range values {
		p[name+"."+strconv.Itoa(i+1)] = v
	}
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
