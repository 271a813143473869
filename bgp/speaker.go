package bgp

import "context"

// Speaker holds the sessions of this process.
type Speaker struct{}

// NewSpeaker returns a Speaker with no session. It opens nothing.
func NewSpeaker(opts Options) *Speaker { panic("not yet") }

// Sync makes the sessions and their paths what desired says. A session that desired does not
// name is ended with a Cease, so that its switch withdraws at once. It does not wait for a
// session to come up.
func (s *Speaker) Sync(ctx context.Context, desired State) ([]Change, error) { panic("not yet") }

// Status reports every session, sorted by Key.
func (s *Speaker) Status(ctx context.Context) []Status { panic("not yet") }

// Stop ends the process's part without a Cease: the switches keep the paths for the restart
// time. Nothing may be called afterwards.
func (s *Speaker) Stop() { panic("not yet") }
