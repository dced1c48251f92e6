package web

import (
	"cmp"
	"crypto/sha256"
	_ "embed" // the page's two parts
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"certsync/internal/cert"
	"certsync/internal/cluster"
)

//go:embed page.html
var pageText string

//go:embed page.css
var style string

// policy lets the page load nothing and run nothing: its own style is the only one that counts (CSP level 2).
var policy = "default-src 'none'; style-src 'sha256-" + digest(style) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

const (
	// mostGaps and mostDomains are how many are shown of a node and of a certificate; the rest is a number.
	mostGaps    = 10
	mostDomains = 6
	// fewQuiet is up to how many certificates in order are unfolded.
	fewQuiet = 60
)

// pageTemplate has its functions as stubs: a page brings those that know what time it is.
var pageTemplate = template.Must(template.New("page").Funcs((&page{}).functions()).Parse(pageText))

// WritePage writes the view as one HTML page that needs nothing else, a certificate at a time.
func WritePage(w io.Writer, v View) error {
	p := newPage(v)
	t, err := pageTemplate.Clone()
	if err != nil {
		return fmt.Errorf("status page: %w", err)
	}
	return t.Funcs(p.functions()).Execute(w, p)
}

// page is what the template is given.
type page struct {
	index
	Health Health
	// Trouble counts the certificates that need a look, Quiet the others.
	Trouble, Quiet int
	troubled       map[cert.Slot]bool
}

func newPage(v View) *page {
	p := &page{index: newIndex(v), troubled: map[cert.Slot]bool{}}
	p.Health = p.health()
	for _, r := range p.readiness {
		for _, gap := range r.Gaps {
			p.troubled[gap.Slot] = true
		}
	}
	for _, row := range p.rows() {
		p.troubled[row.Slot] = p.troubled[row.Slot] || row.Error != "" || row.Newest.Runway(p.Now) < 0.1
		if p.troubled[row.Slot] {
			p.Trouble++
		} else {
			p.Quiet++
		}
	}
	return p
}

// functions are those that the template calls.
func (p *page) functions() template.FuncMap {
	return template.FuncMap{
		"when":   p.when,
		"date":   date,
		"phrase": func(o cluster.Outcome) string { return strings.ReplaceAll(string(o), "_", " ") },
		"lines":  func(text string) []string { return strings.Split(text, "\n") },
		"took":   func(r *cluster.Report) string { return r.End.Sub(r.Start).Round(time.Millisecond).String() },
	}
}

// Style is trusted: it is this package's own.
func (p *page) Style() template.CSS { return template.CSS(style) }

// Ready says how many certificates there are, for a node that serves them all.
func (p *page) Ready() string { return plural(p.Trouble+p.Quiet, "certificate") }

// FewQuiet tells that the certificates in order fit on a page that is read from its top.
func (p *page) FewQuiet() bool { return p.Quiet <= fewQuiet }

// Warnings are those of the last pass.
func (p *page) Warnings() []string {
	if p.Last == nil {
		return nil
	}
	return p.Last.Warnings
}

// when is an instant for a person: how far away it is, and what it is in UTC.
func (p *page) when(t time.Time) string {
	if t.IsZero() {
		return "at no known time"
	}
	if d := t.Sub(p.Now); d > 0 {
		return "in " + words(d) + " (" + date(t) + ")"
	}
	return words(p.Now.Sub(t)) + " ago (" + date(t) + ")"
}

func date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// nodeCard is a node on the page.
type nodeCard struct {
	Name, Version string
	Role          cluster.Role
	Good          bool
	Verdict       string
	Error, Hint   string
	Gaps          []cluster.Gap
	MoreGaps      int
	// Notes are other things that a person must look at.
	Notes []string
}

// NodeCards are the nodes, this one first.
func (p *page) NodeCards() []nodeCard {
	out := make([]nodeCard, 0, len(p.nodes()))
	for i, n := range p.nodes() {
		r := p.readiness[i]
		card := nodeCard{Name: n.Node, Role: n.Role, Version: n.Version, Good: r.Ready(), Verdict: r.Verdict(p.Trouble + p.Quiet), Error: n.Error, Hint: n.Hint,
			Gaps: r.Gaps[:min(len(r.Gaps), mostGaps)], MoreGaps: max(0, len(r.Gaps)-mostGaps), Notes: slices.Clone(n.Problems)}
		own := p.nodes()[0]
		if n.Reachable && n.Digest != own.Digest {
			card.Notes = append(card.Notes, "it runs another configuration (acme, dns or certificates)")
		}
		if n.Reachable && n.Version != own.Version {
			card.Notes = append(card.Notes, "it runs another version of certsync")
		}
		out = append(out, card)
	}
	return out
}

// certificateCard is a certificate on the page.
type certificateCard struct {
	cluster.CertificateReport
	// Late tells that it was to be renewed and was not.
	Trouble, Expired, Late bool
	MoreDomains            int
	Runway                 float64
	Percent                int
	Left                   string
	// Why is the CA's page about the time of the renewal, "" where it is no https URL.
	Why    string
	Places []place
}

// place is where a certificate stands on a node.
type place struct {
	Node, Proxy          string
	Disk, Memory, Served cell
}

// cell is a short text and whether that is as it should be.
type cell struct{ Text, Class string }

// Rows yields the certificates that need a look, or the others.
func (p *page) Rows(trouble bool) iter.Seq[certificateCard] {
	return func(yield func(certificateCard) bool) {
		for _, row := range p.rows() {
			if p.troubled[row.Slot] == trouble && !yield(p.card(row)) {
				return
			}
		}
	}
}

func (p *page) card(row cluster.CertificateReport) certificateCard {
	g := row.Newest
	c := certificateCard{CertificateReport: row, Trouble: p.troubled[row.Slot], Runway: g.Runway(p.Now), Left: words(g.Left(p.Now)),
		Expired: g.Left(p.Now) <= 0, Late: row.RenewAt.Before(p.Now), MoreDomains: max(0, len(row.Domains)-mostDomains)}
	c.Domains = row.Domains[:min(len(row.Domains), mostDomains)]
	c.Percent = int(100 * c.Runway)
	if strings.HasPrefix(row.Explanation, "https://") {
		c.Why = row.Explanation
	}
	for _, n := range p.nodes() {
		c.Places = append(c.Places, p.places(n, row)...)
	}
	return c
}

func (p *page) places(n cluster.NodeStatus, row cluster.CertificateReport) []place {
	newest := row.Newest
	if !n.Reachable {
		return []place{{Node: n.Node, Disk: cell{"unreachable", "soft"}}}
	}
	placements := slices.Clone(p.placed[n.Node][row.Slot])
	slices.SortFunc(placements, func(a, b cluster.Placement) int { return cmp.Compare(a.Proxy, b.Proxy) })
	var out []place
	for _, pl := range placements {
		out = append(out, place{Node: n.Node, Proxy: pl.Proxy, Disk: seen(pl.Disk, newest), Memory: inMemory(pl, newest), Served: inHandshake(pl, newest)})
	}
	return out
}

// seen is a sighting, and whether it is of the newest generation.
func seen(s cluster.Sighting, newest cert.Generation) cell {
	switch {
	case !newest.IsZero() && s.Fingerprint == newest.Fingerprint:
		return cell{s.Fingerprint.Short(), "good"}
	case !s.Fingerprint.IsZero():
		return cell{s.Fingerprint.Short(), "bad"}
	case s.SHA1 != "":
		return cell{"other", "bad"}
	}
	return cell{"none", "bad"}
}

func inMemory(pl cluster.Placement, newest cert.Generation) cell {
	if !pl.Running {
		return cell{"not running", "bad"}
	}
	return seen(pl.Memory, newest)
}

func inHandshake(pl cluster.Placement, newest cert.Generation) cell {
	if pl.Proof == cluster.NoProof {
		return cell{"unproven", "soft"}
	}
	return seen(pl.Served, newest)
}
