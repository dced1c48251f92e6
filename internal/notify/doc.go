// Package notify sends a message to a person, through one of the services of the library shoutrrr: a webhook, mail, a
// chat, a push service, each named by a URL. It is floor 1 of the house, and the only package that imports the library.
//
// Such a URL holds the secrets of its service, mostly in what is a host's or a path's place in other URLs. A Target is
// therefore named by its service, and by a host only where the service has servers of the reader's own; and nothing
// that the library says leaves this package before every part of the URL was taken out of it.
//
// The library knows no context. A send that has not come to its end when its context does is given up, and goes on in
// the background for as long as the service keeps the connection; a target with more than a few of those takes no more.
package notify
